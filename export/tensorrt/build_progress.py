"""The builder's nested phases as one fraction of the whole."""

from __future__ import annotations

from typing import Any, Final

from rfedge.export.tensorrt.build_log import BuildLog
from rfedge.jobs.progress import Count
from rfedge.nvidia.tensorrt import TensorRt

PERMILLE: Final = 1000


class PhaseFraction:
    """Adds up phases: a phase inside step i of its parent fills that step by its own fraction."""

    def __init__(self) -> None:
        self._phases: dict[str, tuple[str | None, int]] = {}
        self._done: dict[str, int] = {}
        self._best = 0.0

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        self._phases[name] = (parent if parent in self._phases else None, max(num_steps, 1))
        self._done[name] = 0

    def step(self, name: str, step: int) -> None:
        if name in self._done:
            self._done[name] = max(self._done[name], step + 1)
            self._raise_best()

    def finish(self, name: str) -> None:
        self._phases.pop(name, None)
        self._done.pop(name, None)

    @property
    def fraction(self) -> float:
        """Done so far, 0 to 1; it never falls, though the builder may open further phases."""
        return self._best

    def _raise_best(self) -> None:
        roots = [name for name, (parent, _) in self._phases.items() if parent is None]
        self._best = max([self._best, *(self._fraction(name) for name in roots)])

    def _fraction(self, name: str) -> float:
        children = [child for child, (parent, _) in self._phases.items() if parent == name]
        inside = max((self._fraction(child) for child in children), default=0.0)
        return min((self._done[name] + inside) / self._phases[name][1], 1.0)


def attach_progress(module: TensorRt, log: BuildLog, report: Count) -> Any | None:
    """Return an `IProgressMonitor` that calls `report(permille, 1000)`; None where the module has none.

    A step answers False, "stop building", once a signal has raised something: that goes to `log.interrupt`.
    """
    trt = module.trt
    if not hasattr(trt, "IProgressMonitor"):
        return None
    fraction = PhaseFraction()

    class _Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            fraction.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                fraction.step(phase_name, step)
                report(int(PERMILLE * fraction.fraction), PERMILLE)
            except BaseException as error:
                log.interrupt = error
            return log.interrupt is None

        def phase_finish(self, phase_name: str) -> None:
            fraction.finish(phase_name)

    return _Monitor()
