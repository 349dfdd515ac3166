"""Brings one robot to rest, from whichever thread notices first that it must, and lets one loop at a time drive it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rfedge.errors import ConfigError
from rfedge.runtimes.control.robot import Robot

__all__ = ["Rest", "claim_robot", "driving"]

logger = logging.getLogger(__name__)
_ATTEMPTS: Final = 3
_LOCK_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # the folder is everybody's: a pipe would be waited for
_driven: set[int] = set()
_driven_lock: Final = threading.Lock()


class Rest:
    """Calls `Robot.stop`, one call at a time; a stop that fails or is interrupted is tried again."""

    def __init__(self, robot: Robot) -> None:
        self._robot = robot
        self._lock = threading.Lock()

    def __call__(self) -> None:
        """Stop the robot; raises what the last attempt raised, or what interrupted an earlier one once the robot rests."""
        interruption: BaseException | None = None
        failures: list[Exception] = []
        with contextlib.ExitStack() as stack:
            stack.callback(_warn, failures)  # at the end: a terminal may hold up who writes to it
            stack.enter_context(self._lock)
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    self._robot.stop()
                    break
                except Exception as error:
                    if attempt == _ATTEMPTS:
                        raise
                    failures.append(error)
                except BaseException as error:  # Ctrl-C again
                    interruption = error
                    if attempt == _ATTEMPTS:
                        raise
        if interruption is not None:
            raise interruption


def _warn(failures: list[Exception]) -> None:
    for attempt, error in enumerate(failures, start=1):
        logger.warning("attempt %d to stop the robot failed: %s", attempt, error)


@contextmanager
def driving(robot: Robot) -> Iterator[None]:
    """Drive `robot` alone inside the block; ConfigError where another loop of this process drives it."""
    with _driven_lock:
        if id(robot) in _driven:
            raise _driven_already("robot")
        _driven.add(id(robot))
    try:
        yield
    finally:
        with _driven_lock:
            _driven.discard(id(robot))


@contextmanager
def claim_robot(name: str) -> Iterator[None]:
    """Keep other processes of this machine from driving the arm called `name` inside the block.

    The lock is a file in the folder for temporary files and ends with the process, however that ends.

    Raises:
        ConfigError: another process drives it, or the lock cannot be made.
    """
    path = Path(tempfile.gettempdir()) / f"rfedge-robot-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[:100]}.lock"
    try:
        try:  # another user's file can be locked, but not opened for writing
            descriptor = os.open(path, _LOCK_FLAGS)
        except FileNotFoundError:
            descriptor = os.open(path, _LOCK_FLAGS | os.O_CREAT, 0o644)
    except OSError as error:
        remedy = "Remove it, or set TMPDIR."
        raise ConfigError(f"lock {path}", got=error.strerror, expected="a file of ours", remedy=remedy) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise _driven_already(f"robot {name}") from None
        yield
    finally:
        os.close(descriptor)


def _driven_already(subject: str) -> ConfigError:
    remedy = "Wait until the first has ended."
    return ConfigError(subject, got="a second control loop", expected="one at a time", remedy=remedy)
