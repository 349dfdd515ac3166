"""Log of the builder: its errors, its memory figures and, at the end, the layers it made.

With detailed profiling both modules print every layer of the finished engine, so that the audit needs no GPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from rfedge.jobs.progress import Count
from rfedge.nvidia.tensorrt import TensorRt

_LAYERS_HEADER: Final = "Layers:"
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")
_NO_NEWS: Final = ("cudaError", "Error reading CUDA GPU properties")  # of a machine that builds without a GPU


@dataclass(slots=True)
class BuildLog:
    """Collected lines of one build."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    layers_text: str = ""  # the builder's description of the finished engine
    weights_bytes: int = 0  # of the finished engine, 0 where not said
    activations_bytes: int = 0
    # what a signal raised in a callback; it cannot pass through C++ and is raised again later
    interrupt: BaseException | None = None

    def add_info(self, text: str) -> None:
        if match := _WEIGHTS.search(text):
            self.weights_bytes = int(match.group(1))
        elif match := _ACTIVATIONS.search(text):
            self.activations_bytes = int(match.group(1))
        elif text.startswith(_LAYERS_HEADER):
            self.layers_text = text


def attach_log(module: TensorRt, log: BuildLog) -> Any:
    """Return an `ILogger` of `module` that fills `log`."""
    trt = module.trt

    class _Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            try:
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                    if not any(part in text for part in _NO_NEWS):
                        log.errors.append(text)
                elif severity == trt.ILogger.WARNING:
                    log.warnings.append(text)
                else:
                    log.add_info(text)
            except BaseException as error:
                log.interrupt = error

    return _Logger()


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
            roots = [name for name, (parent, _) in self._phases.items() if parent is None]
            self._best = max([self._best, *map(self._fraction, roots)])

    def finish(self, name: str) -> None:
        self._phases.pop(name, None)
        self._done.pop(name, None)

    @property
    def fraction(self) -> float:
        """Done so far, 0 to 1; it never falls, though the builder may open further phases."""
        return self._best

    def _fraction(self, name: str) -> float:
        children = [child for child, (parent, _) in self._phases.items() if parent == name]
        inside = max((self._fraction(child) for child in children), default=0.0)
        return min((self._done[name] + inside) / self._phases[name][1], 1.0)


def attach_progress(module: TensorRt, log: BuildLog, report: Count) -> Any | None:
    """Return an `IProgressMonitor` that calls `report(permille, 1000)`; None where the module has none."""
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
            return log.interrupt is None  # False stops the build

        def phase_finish(self, phase_name: str) -> None:
            fraction.finish(phase_name)

    return _Monitor()
