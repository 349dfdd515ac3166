"""A weight on its way into a form: its numbers are read when they are written, checked, rounded once, and let go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rfedge.errors import ExportError
from rfedge.export.passes.graph_queries import tensor_of

Array = npt.NDArray[Any]


class WeightParts:
    """The parts of one quantized weight: it is rounded once, and each part is let go when it has been written."""

    def __init__(self, compute: Callable[[], Mapping[str, Array]]) -> None:
        self._compute = compute
        self._waiting: dict[str, Array] = {}

    def part(self, name: str) -> Callable[[], Array]:
        """Return a function that hands out the part, once."""

        def take() -> Array:
            if name not in self._waiting:
                self._waiting = dict(self._compute())
            return self._waiting.pop(name)

        return take


def finite_weight(value: ir.Value) -> Callable[[], npt.NDArray[np.float32]]:
    """Return a function that reads the weight and makes sure of its numbers.

    It raises ExportError where the weight holds NaN or Inf.
    """
    tensor, name = tensor_of(value), value.name

    def read() -> npt.NDArray[np.float32]:
        array: npt.NDArray[np.float32] = tensor.numpy().astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise ExportError(
                f"weight {name!r}",
                got="NaN or Inf",
                expected="finite numbers",
                remedy="Repair the checkpoint; no precision can hold this weight.",
            )
        return array

    return read
