"""What the builder says while it works: its errors, its memory figures and, at the end, the layers it made.

With detailed profiling both modules print every layer of the finished engine, so that the audit needs no GPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from rfedge.nvidia.tensorrt import TensorRt

_LAYERS_HEADER: Final = "Layers:"
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")
_NO_NEWS: Final = ("cudaError", "Error reading CUDA GPU properties")  # of a machine that builds without a GPU


@dataclass(slots=True)
class BuildLog:
    """Collected lines of one build.

    Attributes:
        errors, warnings: their texts, in order.
        layers_text: the builder's description of the finished engine, empty until it is there.
        weights_bytes, activations_bytes: of the finished engine, 0 where not said.
        interrupt: what a signal raised inside a callback; it cannot pass through C++ and is raised again later.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    layers_text: str = ""
    weights_bytes: int = 0
    activations_bytes: int = 0
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
