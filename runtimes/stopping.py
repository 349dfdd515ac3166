"""Ends a run from outside, between two control steps: a signal or another thread asks, the loop obeys."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

__all__ = ["SIGNAL_STATUS", "StopRequest", "stop_on_signals"]

# What a shell reports for a process that a signal ended.
SIGNAL_STATUS: Final = {"SIGINT": 130, "SIGTERM": 143}


class StopRequest:
    """A wish that the loop looks at before every step.

    Attributes:
        reason: None until somebody asked; then the first reason given.
        is_heard: whether a loop has begun that looks at it.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.is_heard = False

    def ask(self, reason: str) -> None:
        """End the run before its next step."""
        self.reason = self.reason or reason


@contextmanager
def stop_on_signals(request: StopRequest) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM inside the block into a request; a second one acts as it did before.

    So does the first while no loop has begun: what is still being loaded need not be waited for. Outside the main
    thread, where Python allows no handlers, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = ("SIGINT", "SIGTERM")
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}

    def restore() -> None:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), signal.SIG_DFL if handler is None else handler)

    def ask(number: int, _: FrameType | None) -> None:
        restore()
        if request.is_heard:
            request.ask(signal.Signals(number).name)
        else:
            signal.raise_signal(number)

    for name in names:
        signal.signal(getattr(signal, name), ask)
    try:
        yield
    finally:
        restore()
