"""Runs jobs as tasks of a Ray cluster: the sibling of `rfedge.jobs.processes.run_jobs` for more than one machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final, TypeVar

from rfedge.errors import BackendUnavailableError, RfedgeError

Job = TypeVar("Job")
Result = TypeVar("Result")
# What a simulator's process must inherit wherever it runs.
_VARIABLES: Final = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "OMP_NUM_THREADS")
_CONNECT_S: Final = 10.0


class RayWorkers:
    """A connection to Ray; use it as a context manager. Each job is a task of one CPU, at most `workers` of them at once.

    The same rfedge must be installed on every node, and files that jobs name (bundles) must lie at the same path there. The
    address "local" starts a Ray on this machine; "auto", "HOST:PORT" and "ray://HOST:PORT" join one.
    """

    def __init__(self, address: str, workers: int) -> None:
        self._address = address
        self._workers = workers
        self._ray: Any = None

    def __enter__(self) -> RayWorkers:
        """Connect."""
        try:
            import ray
        except ImportError:
            remedy = "pip install 'rfedge[scale]'."
            raise BackendUnavailableError("--ray", got="no ray", expected="the 'scale' extra", remedy=remedy) from None
        options: dict[str, Any] = {"address": self._address}
        if self._address == "local":
            options |= {"num_cpus": self._workers, "include_dashboard": False}
        self._check_answers()
        variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        try:
            ray.init(**options, runtime_env={"env_vars": variables}, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise self._unreachable((str(error).strip().splitlines() or [type(error).__name__])[0]) from None
        self._ray = ray
        return self

    def _check_answers(self) -> None:
        """Refuse an address at which nothing listens: Ray itself would try for minutes."""
        host, colon, port = self._address.removeprefix("ray://").rpartition(":")
        if not colon:
            return
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        except (OSError, ValueError) as error:
            raise self._unreachable(getattr(error, "strerror", None) or str(error)) from None

    def _unreachable(self, reason: str) -> BackendUnavailableError:
        remedy = "Check the address."
        return BackendUnavailableError(f"--ray {self._address}", got=reason, expected="a Ray that answers", remedy=remedy)

    def __exit__(self, *error: object) -> None:
        self._ray.shutdown()

    def __call__(self, call: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[tuple[Job, Result]]:
        """Yield every job with its result, each as soon as it is there; see `rfedge.jobs.processes.run_jobs`."""
        ray = self._ray
        shared = ray.put(call)  # sent once a node, not once a job
        task = ray.remote(_call).options(num_cpus=1, max_retries=3, scheduling_strategy="SPREAD")
        waiting: dict[Any, Job] = {}
        remaining = iter(jobs)
        try:
            while True:
                for job in islice(remaining, 2 * workers - len(waiting)):
                    waiting[task.remote(shared, job)] = job
                if not waiting:
                    return
                (finished, *_), _ = ray.wait(list(waiting), num_returns=1)
                yield waiting.pop(finished), self._get(finished)
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)

    def _get(self, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(reference)
        except errors.RayTaskError:
            raise  # a bug keeps its traceback
        except errors.RayError as error:
            got = f"{type(error).__name__} in a task"
            remedy = "Repeat the command to go on; with too little memory, use fewer --workers."
            raise BackendUnavailableError("Ray", got=got, expected="workers that live", remedy=remedy) from None
        if isinstance(answer, RfedgeError):
            raise answer
        return answer


def _call(call: Callable[[Job], Result], job: Job) -> Result | RfedgeError:
    try:
        return call(job)
    except RfedgeError as error:
        return error  # a user's error is an answer: Ray would print the traceback of one that is raised
