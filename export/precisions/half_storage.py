"""Weights that are stored in fp16 and computed with in fp32: half the file, the same time, for graphs that stay float.

A Cast turns each back when the runtime loads the graph, and is folded there.

Ensures: every finite float32 weight of more than `_SMALLEST` elements is stored in fp16; inputs and outputs are as before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from rfedge.errors import ExportError
from rfedge.export.passes.graph_files import read_graph, write_graph
from rfedge.export.passes.graph_queries import add_computed, constant_array, tensor_shape

_SMALLEST: Final = 1024
_LARGEST_MASK: Final = 2**20
_LARGEST_HALF: Final = float(np.finfo(np.float16).max)


def store_half(source: Path, target: Path) -> list[Path]:
    """Write the graph at `source` to `target` with its weights in fp16; ExportError names a weight beyond fp16's range."""
    model = read_graph(source)
    _store_half(model.graph, min_axes=1)
    return write_graph(model, target)


def store_weights_half(graph: ir.Graph) -> None:
    """Store in fp16 the float matrices and kernels of a graph, in place; vectors, such as int8's scales, stay."""
    _store_half(graph, min_axes=2)


def _store_half(graph: ir.Graph, *, min_axes: int) -> None:
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size <= _SMALLEST or value.is_graph_output():
            continue
        if len(tensor.shape) < min_axes or _is_mask(value):
            continue
        half = add_computed(
            graph,
            f"{value.name}.half",
            lambda tensor=tensor, name=value.name: _halved(str(name), tensor.numpy()),  # type: ignore[misc]
            ir.DataType.FLOAT16,
            tensor_shape(tensor),
        )
        cast = ir.node("Cast", [half], attributes={"to": ir.DataType.FLOAT}, name=f"{value.name}.cast", num_outputs=1)
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(tensor_shape(tensor))
        graph.insert_before(graph[0], cast)
        value.replace_all_uses_with(cast.outputs[0])
        graph.initializers.pop(str(value.name))


def _is_mask(value: ir.Value) -> bool:
    """Whether a constant holds infinities, as the bias that hides the future does: fp16 has no use for it."""
    array = constant_array(value, largest=_LARGEST_MASK)
    return array is not None and not np.isfinite(array).all()


def _halved(
    name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    largest = float(np.abs(array).max(initial=0.0))
    if not largest <= _LARGEST_HALF:
        raise ExportError(
            f"weight {name}", got=f"{largest:g}", expected=f"at most {_LARGEST_HALF:g} for fp16", remedy="Export fp32."
        )
    return array.astype(np.float16)
