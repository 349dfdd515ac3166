"""The next batch is made in a thread while this one trains."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Self = TypeVar("Self", bound="Prefetch[Any]")


class Prefetch(Generic[T]):
    """Makes one item ahead inside its context: `plan` samples, and returns the work that is left to a thread."""

    def __init__(self, plan: Callable[[], Callable[[], T]]) -> None:
        self._plan = plan
        self._next: Future[T]

    def next(self) -> T:
        """Return the next item, or raise what making it raised."""
        ready = self._next.result()
        # Sampled here, not in the thread: so it does not depend on how far that has come.
        self._next = self._executor.submit(self._plan())
        return ready

    def __enter__(self: Self) -> Self:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="rfedge-batches")
        self._next = self._executor.submit(self._plan())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._executor.shutdown(cancel_futures=True)
