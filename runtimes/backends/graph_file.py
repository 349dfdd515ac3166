"""Read what an ONNX file computes (nodes, shapes, sizes of weights) without the `onnx` package and without its weights.

The file is mapped, not loaded: a backbone of some gigabytes is described in the time its nodes take.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rfedge.bundle.block_names import SCOPES_KEY
from rfedge.errors import ArtifactError
from rfedge.runtimes.backends.protobuf import WireError, fields, packed_varints, signed, text

__all__ = ["ELEMENT_BITS", "ELEMENT_NAMES", "Dimension", "Graph", "Node", "Tensor", "graph_message", "read_graph"]

# One axis: its size, the name of a dynamic axis, or None where the file does not say.
Dimension = int | str | None

# ONNX element type -> (name, bits)
_ELEMENT_TYPES: Final = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("float64", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    16: ("bfloat16", 16),
    17: ("float8e4m3fn", 8),
    18: ("float8e4m3fnuz", 8),
    19: ("float8e5m2", 8),
    20: ("float8e5m2fnuz", 8),
    21: ("uint4", 4),
    22: ("int4", 4),
}
ELEMENT_BITS: Final = dict(_ELEMENT_TYPES.values())
ELEMENT_NAMES: Final = {number: name for number, (name, _) in _ELEMENT_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Tensor:
    """What is known of a tensor: element type ("float32", ...; "" when unknown) and shape (None when unknown)."""

    dtype: str
    shape: tuple[Dimension, ...] | None


@dataclass(frozen=True, slots=True)
class Node:
    """One operator.

    Attributes:
        integers: its integer attributes.
        scopes: the modules it was traced from, as PyTorch's exporter wrote them; None when it did not.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: dict[str, int] = field(default_factory=dict)
    scopes: str | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """An ONNX graph without its numbers.

    Attributes:
        nodes: in topological order, as ONNX demands.
        inputs: names of the graph's inputs, without its weights.
        weights: initializers by name.
        tensors: every tensor whose type the file declares, weights included.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    weights: dict[str, Tensor]
    tensors: dict[str, Tensor]


def read_graph(path: Path) -> Graph:
    """Describe the graph in the ONNX file at `path`.

    Raises:
        ArtifactError: the file cannot be read or is no ONNX model.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped with the last view of it
        return _graph(graph_message(memoryview(mapped)))
    except (OSError, KeyError, ValueError) as error:  # WireError and UnicodeDecodeError are ValueErrors
        raise ArtifactError(
            f"graph {path.name}", got=str(error), expected="an ONNX file", remedy="Export the bundle again."
        ) from None


def graph_message(model: memoryview) -> memoryview:
    """Return the GraphProto within a ModelProto.

    Raises:
        WireError: there is none.
    """
    for number, value in fields(model):
        if number == 7 and not isinstance(value, int):
            return value
    raise WireError("no graph")


def _graph(message: memoryview) -> Graph:
    nodes: list[Node] = []
    inputs: list[str] = []
    weights: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for number, value in fields(message):
        if isinstance(value, int):
            continue
        if number == 1:
            nodes.append(_node(value))
        elif number == 5:
            name, tensor = _initializer(value)
            weights[name] = tensor
        elif number in (11, 12, 13):
            name, tensor = _value_info(value)
            tensors[name] = tensor
            if number == 11:
                inputs.append(name)
    return Graph(
        nodes=tuple(nodes),
        inputs=tuple(name for name in inputs if name not in weights),
        weights=weights,
        tensors=tensors | weights,
    )


def _node(message: memoryview) -> Node:
    inputs: list[str] = []
    outputs: list[str] = []
    name = op = ""
    integers: dict[str, int] = {}
    scopes: str | None = None
    for number, value in fields(message):
        if number == 1:
            inputs.append(text(value))
        elif number == 2:
            outputs.append(text(value))
        elif number == 3:
            name = text(value)
        elif number == 4:
            op = text(value)
        elif number == 5 and not isinstance(value, int):
            attribute = dict(fields(value))
            if isinstance(integer := attribute.get(3), int):
                integers[text(attribute[1])] = signed(integer)
        elif number == 9 and not isinstance(value, int):
            entry = dict(fields(value))
            if 1 in entry and text(entry[1]) == SCOPES_KEY:
                scopes = text(entry[2])
    return Node(name, op, tuple(inputs), tuple(outputs), integers, scopes)


def _initializer(message: memoryview) -> tuple[str, Tensor]:
    shape: list[Dimension] = []
    element, name = 0, ""
    for number, value in fields(message):
        if number == 1:
            shape.extend(packed_varints(value))
        elif number == 2 and isinstance(value, int):
            element = value
        elif number == 8:
            name = text(value)
    return name, Tensor(_dtype(element), tuple(shape))


def _value_info(message: memoryview) -> tuple[str, Tensor]:
    name = ""
    tensor = Tensor("", None)
    for number, value in fields(message):
        if number == 1:
            name = text(value)
        elif number == 2 and not isinstance(value, int):
            for kind, content in fields(value):
                if kind == 1 and not isinstance(content, int):  # tensor_type; sequences and maps have no one shape
                    tensor = _tensor_type(content)
    return name, tensor


def _tensor_type(message: memoryview) -> Tensor:
    element = 0
    shape: tuple[Dimension, ...] | None = None
    for number, value in fields(message):
        if number == 1 and isinstance(value, int):
            element = value
        elif number == 2 and not isinstance(value, int):
            shape = tuple(_dimension(item) for _, item in fields(value) if not isinstance(item, int))
    return Tensor(_dtype(element), shape)


def _dimension(message: memoryview) -> Dimension:
    for number, value in fields(message):
        if number == 1 and isinstance(value, int):
            return signed(value)
        if number == 2:
            return text(value)
    return None


def _dtype(element: int) -> str:
    return ELEMENT_NAMES.get(element, "")
