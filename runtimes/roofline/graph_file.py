"""Content of an ONNX file (nodes, shapes, sizes of weights), read without the weights beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rfedge.bundle.block_names import SCOPES_KEY
from rfedge.errors import ArtifactError

# One axis: its size, the name of a dynamic axis, or None where the file does not say.
Dimension = int | str | None


@dataclass(frozen=True, slots=True)
class Tensor:
    """Known facts of a tensor: element type ("float32", ...; "" when unknown) and shape (None when unknown)."""

    dtype: str
    shape: tuple[Dimension, ...] | None


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: dict[str, int] = field(default_factory=dict)  # its integer attributes
    scopes: str | None = None  # the modules it was traced from, as PyTorch's exporter wrote them; None when it did not


@dataclass(frozen=True, slots=True)
class Graph:
    """An ONNX graph without its numbers."""

    nodes: tuple[Node, ...]  # in topological order, as ONNX demands
    inputs: tuple[str, ...]  # names of the graph's inputs, without its weights
    weights: dict[str, Tensor]  # initializers by name
    tensors: dict[str, Tensor]  # every tensor whose type the file declares, weights included


def element_bits(dtype: str) -> int:
    """Return the bits of an element; of an unknown type, 32."""
    found = re.search(r"\d+", dtype)
    return int(found[0]) if found else 8 if dtype == "bool" else 32


def read_graph(path: Path) -> Graph:
    """Describe the graph in the ONNX file at `path`. Raises ArtifactError if the file cannot be read or is no ONNX model."""
    # Here, not above: commands that run a policy do without it.
    import onnx
    from google.protobuf.message import DecodeError

    got, graph = "no graph", onnx.GraphProto()
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (OSError, DecodeError) as error:
        got = str(error)
    if not graph.node:
        raise ArtifactError(f"graph {path.name}", got=got, expected="an ONNX file", remedy="Export the bundle again.")
    weights = {one.name: Tensor(_dtype(one.data_type), tuple(one.dims)) for one in graph.initializer}
    return Graph(
        nodes=tuple(map(_node, graph.node)),
        inputs=tuple(value.name for value in graph.input if value.name not in weights),
        weights=weights,
        tensors={value.name: _tensor(value) for value in (*graph.input, *graph.output, *graph.value_info)} | weights,
    )


def _node(node: Any) -> Node:
    scopes = next((one.value for one in node.metadata_props if one.key == SCOPES_KEY), None)
    integers = {one.name: one.i for one in node.attribute if one.type == one.INT}
    return Node(node.name, node.op_type, tuple(node.input), tuple(node.output), integers, scopes)


def _tensor(value: Any) -> Tensor:
    tensor = value.type.tensor_type  # sequences and maps have no one shape
    return Tensor(_dtype(tensor.elem_type), _shape(tensor.shape.dim) if tensor.HasField("shape") else None)


def _shape(axes: Iterable[Any]) -> tuple[Dimension, ...]:
    return tuple(getattr(axis, axis.WhichOneof("value") or "", None) for axis in axes)


def _dtype(element_type: int) -> str:
    from onnx.helper import tensor_dtype_to_np_dtype

    return str(tensor_dtype_to_np_dtype(element_type)) if element_type else ""
