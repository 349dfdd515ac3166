"""Runs jobs in processes of their own, and ends those processes with this one however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_connection
from typing import Final, Protocol, TypeVar

from rfedge.errors import BackendUnavailableError, ConfigError

_MOST_WORKERS: Final = 64
_MOST_PER_CORE: Final = 4
Job = TypeVar("Job")
Result = TypeVar("Result")


class JobRunner(Protocol):
    """Runs jobs somewhere: `run_jobs` in processes of this machine, `rfedge.jobs.ray.RayWorkers` in a cluster."""

    def __call__(self, call: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[tuple[Job, Result]]:
        """Yield every job with its result, each as soon as it is there; see `run_jobs`."""


def run_jobs(call: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[tuple[Job, Result]]:
    """Yield every job with its result as soon as it is there. One worker is this process; for more, `call` is a top-level
    function or a partial of one.

    Raises:
        BackendUnavailableError: a worker process died.
        ConfigError: more workers than any machine of this size could hold.
    """
    most = max(_MOST_WORKERS, _MOST_PER_CORE * (os.cpu_count() or 1))
    if workers > most:
        raise ConfigError("workers", got=workers, expected=f"1 to {most}", remedy="Lower --workers.")
    if workers == 1:
        for job in jobs:
            yield job, call(job)
        return
    waiting: dict[Future[Result], Job] = {}
    remaining = iter(jobs)
    try:
        with worker_pool(workers) as pool:
            while True:
                # One in work and one in store for each: a result may be many MB, so they must not pile up.
                for job in islice(remaining, 2 * workers - len(waiting)):
                    waiting[pool.submit(call, job)] = job
                if not waiting:
                    return
                finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield waiting.pop(future), future.result()
    except BrokenProcessPool:
        got = "a worker process that died"
        remedy = "Repeat the command to go on; with too little memory, use fewer --workers."
        raise BackendUnavailableError("workers", got=got, expected=f"{workers} that live", remedy=remedy) from None


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yield processes that end with the block: at once where it raises, else when what they do is done."""
    context = multiprocessing.get_context("spawn")  # not fork: renderers and thread pools do not survive one
    leash, held = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent, initargs=(leash,))
    try:
        yield executor
    except BaseException:
        held.close()  # nobody takes the results of the jobs in work: a stop should not wait minutes for them
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        held.close()
        leash.close()


def _end_with_parent(leash: Connection) -> None:
    """Make this worker end when its parent is killed or lets go; by itself it would wait for jobs for ever."""
    os.dup2(2, 1)  # what a library prints is no part of the document on stdout
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=([parent.sentinel, leash],), daemon=True).start()


def _exit_after(ends: list[int | Connection]) -> None:
    wait_for_connection(ends)
    os._exit(1)
