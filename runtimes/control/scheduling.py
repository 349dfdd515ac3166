"""A control loop that the operating system does not keep waiting: Linux's first-in-first-out scheduling.

A thread of this class runs as soon as it can, before every ordinary one, so a package update or a logger on the same
computer no longer delays a control step. It yields only when it waits; Linux keeps 5 % of each second for the others.
Source: sched(7).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from rfedge.errors import BackendUnavailableError, ConfigError

__all__ = ["HIGHEST_PRIORITY", "check_priority", "describe_priority", "realtime_priority"]

# 99 is the kernel's own; what watches a loop is one above the loop.
HIGHEST_PRIORITY: Final = 97


def check_priority(priority: int | None) -> int | None:
    """Return `priority`, 1 to 97, or None for ordinary scheduling; ConfigError for anything else."""
    if priority is not None and not 1 <= priority <= HIGHEST_PRIORITY:
        remedy = "50 is usual for a control loop."
        raise ConfigError("realtime_priority", got=priority, expected=f"1 to {HIGHEST_PRIORITY}", remedy=remedy)
    return priority


def describe_priority(priority: int | None) -> str:
    """Return what tables say of a measurement.

    >>> describe_priority(None), describe_priority(50)
    ('ordinary scheduling', 'realtime priority 50')
    """
    return "ordinary scheduling" if priority is None else f"realtime priority {priority}"


@contextlib.contextmanager
def realtime_priority(priority: int | None, *, inherited: bool = False) -> Iterator[None]:
    """Schedule the calling thread first-in-first-out, and as before at the end; None changes nothing.

    `priority` is 1 to 98, higher ones go first; threads begun inside are scheduled like it only if `inherited`.

    Raises:
        BackendUnavailableError: the operating system has no such class, or does not let this user have it.
    """
    if priority is None:
        yield
        return
    if not hasattr(os, "sched_setscheduler"):
        raise _unavailable("an operating system without it")
    policy = os.SCHED_FIFO if inherited else os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    before, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except PermissionError:
        raise _unavailable("no permission") from None
    try:
        yield
    finally:
        os.sched_setscheduler(0, before, parameter)


def _unavailable(got: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        "realtime priority",
        got=got,
        expected="Linux, and root, CAP_SYS_NICE or an rtprio limit for this user",
        remedy="Add '@robot - rtprio 97' to /etc/security/limits.conf for the user's group, or leave the option out.",
    )
