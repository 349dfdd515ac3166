"""Starts the simulator's process, asks it with a deadline, and ends it in every case."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, TYPE_CHECKING, Final

from rfedge.envs.calvin.server import ProtocolError, encode, receive
from rfedge.errors import BackendUnavailableError

if TYPE_CHECKING:
    from rfedge.envs.calvin.server import Arrays, Header

_SUBJECT: Final = "calvin simulator"
_REMEDY: Final = "See docs/how-to/install_calvin.md."
_GRACE_S: Final = 2.0  # between the end of its input and its being killed
_LOG_BYTES: Final = 4096  # of the log's end that are searched for a reason


class SimulatorProcess:
    """One child process that answers one request at a time over pipes; any failure ends it, because its state is unknown."""

    def __init__(self, command: Sequence[str]) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._connection, theirs = Pipe()
        try:
            # A session of its own: Ctrl-C reaches this process alone, which then closes the simulator.
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=self._log, stderr=self._log, start_new_session=True
            )
        except OSError as error:
            self._log.close()
            expected = "an interpreter that has calvin_env"
            remedy = f"Pass python= or set RFEDGE_CALVIN_PYTHON. {_REMEDY}"
            got = f"{command[0]!r} ({error.strerror or error})"
            raise BackendUnavailableError(_SUBJECT, got=got, expected=expected, remedy=remedy) from error
        finally:
            theirs.close()
        # The child also ends when this process does: its input then ends.
        self._finalizer = weakref.finalize(self, _stop, self._process, self._connection, self._log, os.getpid())

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, header: Header, arrays: Arrays | None = None, *, timeout_s: float) -> tuple[Header, Arrays]:
        """Send one request and return the reply's header and arrays."""
        method = header.get("method")
        if not self._finalizer.alive:
            raise self._failure("a closed one", "an open environment", "Make a new one.")
        deadline_s = time.monotonic() + timeout_s
        alarm = threading.Timer(timeout_s, self._process.kill)  # what waits for the reply has no deadline
        alarm.start()
        try:
            for part in encode(header, arrays or {}):
                self._connection.send_bytes(part)
            reply, reply_arrays = receive(self._connection)
        except (EOFError, OSError) as error:
            how = self._end(error)
            if time.monotonic() >= deadline_s:
                raise self._failure(f"no answer to {method!r}", f"one within {timeout_s:g} s") from error
            raise self._failure(f"{how} during {method!r}", "a reply") from error
        except ProtocolError as error:
            self.close()
            raise self._failure(str(error), f"a reply to {method!r}") from error
        except BaseException:
            self.close()  # Ctrl-C leaves a reply on its way, which the next request would take for its own
            raise
        finally:
            alarm.cancel()
        if not reply.get("ok"):
            self.close()
            raise self._failure(str(reply.get("error")), *_advice(str(reply.get("kind")), str(method)))
        return reply, reply_arrays

    @staticmethod
    def _failure(got: str, expected: str, remedy: str = _REMEDY) -> BackendUnavailableError:
        return BackendUnavailableError(_SUBJECT, got=got, expected=expected, remedy=remedy)

    def log(self, *, last_bytes: int | None = None) -> str:
        size = os.fstat(self._log.fileno()).st_size
        start = 0 if last_bytes is None else max(0, size - last_bytes)
        return os.pread(self._log.fileno(), size - start, start).decode(errors="replace")

    def _end(self, error: Exception) -> str:
        """End the process and return how it ended, with its last line."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.2)  # one that has closed its output is about to end by itself
        status = self._process.poll()
        lines = [line.strip() for line in self.log(last_bytes=_LOG_BYTES).splitlines() if line.strip()]
        self.close()
        how = f"a broken connection{f' ({error})' if str(error) else ''}"
        if status is not None:
            how = f"its end with {f'status {status}' if status >= 0 else signal.Signals(-status).name}"
        return f"{how} ({lines[-1][:300]})" if lines else how

    def close(self) -> None:
        self._finalizer()


def _advice(kind: str, method: str) -> tuple[str, str]:
    """Return what was expected and what to do, for an error that the simulator's side reported."""
    if kind in ("ModuleNotFoundError", "ImportError"):
        remedy = (
            "Install a git clone of github.com/mees/calvin_env into an interpreter of its own and set RFEDGE_CALVIN_PYTHON "
            f"(or python=) to it. {_REMEDY}"
        )
        return "an interpreter that has calvin_env", remedy
    if kind in ("InvalidGitRepositoryError", "NoSuchPathError"):
        return "calvin_env within its git clone, which it asks for its commit", f"Clone it with git. {_REMEDY}"
    if kind == "SystemExit":
        return (
            "an EGL device or Mesa's software renderer",
            f'Install libegl1 and libgl1-mesa-dri, or use renderer="tiny". {_REMEDY}',
        )
    return f"{method!r} to succeed", _REMEDY


def _stop(process: subprocess.Popen[bytes], connection: Connection, log: IO[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a forked copy of the owner does not own the simulator
        return
    connection.close()
    try:
        process.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    log.close()
