"""Ends a training run between two steps when a signal asks, so that nothing that was learned is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

_SIGNALS: Final = tuple(name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class TrainingStop:
    """A wish that a run looks at after every step."""

    def __init__(self) -> None:
        self.reason: str | None = None  # the name of the first signal, or whatever asked; None until then
        self.is_heard = False  # whether a run has begun its steps

    def ask(self, reason: str) -> None:
        """End the run after the step under way."""
        self.reason = self.reason or reason


@contextmanager
def stop_training_on_signals(stop: TrainingStop) -> Iterator[None]:
    """Turn the first signal after a step has begun into a request; before, and from the second on, signals act as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def ask(number: int, _: FrameType | None) -> None:
        restore()
        if stop.is_heard:
            stop.ask(signal.Signals(number).name)
        else:
            signal.raise_signal(number)

    for name in _SIGNALS:
        number = getattr(signal, name)
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, ask)
    try:
        yield
    finally:
        restore()
