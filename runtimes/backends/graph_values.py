"""Read a small ONNX graph whole, weights and attributes included, without the `onnx` package.

`graph_file` describes a graph of any size and leaves its numbers on the disk; this is for heads, whose weights lie in
the file itself. Field numbers: onnx.proto3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rfedge.errors import ArtifactError
from rfedge.runtimes.backends.graph_file import ELEMENT_NAMES, graph_message
from rfedge.runtimes.backends.protobuf import WireError, fields, packed_varints, signed, text

__all__ = ["Attribute", "ValuedGraph", "ValuedNode", "read_valued_graph"]

Array = npt.NDArray[Any]
Attribute = int | float | str | tuple[int, ...] | tuple[str, ...] | Array

# What a head may be made of: element types that NumPy has, without the unsigned ones that no exporter writes.
_DTYPES: Final = frozenset({"float32", "uint8", "int8", "int32", "int64", "bool", "float16", "float64"})
# field of TensorProto that holds elements which are not raw bytes -> (struct code, bytes)
_TYPED: Final = {4: ("f", 4), 10: ("d", 8)}


@dataclass(frozen=True, slots=True)
class ValuedNode:
    """One operator with its attributes; `domain` is "" for ONNX's own."""

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute]


@dataclass(frozen=True, slots=True)
class ValuedGraph:
    """Nodes in topological order, graph inputs and outputs by name, and every weight as an array."""

    nodes: tuple[ValuedNode, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: dict[str, Array]


def read_valued_graph(path: Path) -> ValuedGraph:
    """Read the graph in the ONNX file at `path`.

    Raises:
        ArtifactError: the file cannot be read, is no ONNX model, or keeps weights in a file beside it.
    """
    try:
        return _graph(graph_message(memoryview(path.read_bytes())))
    except (OSError, KeyError, ValueError, struct.error) as error:
        raise ArtifactError(
            f"graph {path.name}", got=str(error), expected="an ONNX file with its weights inside", remedy="Export it again."
        ) from None


def _graph(message: memoryview) -> ValuedGraph:
    nodes: list[ValuedNode] = []
    inputs: list[str] = []
    outputs: list[str] = []
    weights: dict[str, Array] = {}
    for number, value in fields(message):
        if isinstance(value, int):
            continue
        if number == 1:
            nodes.append(_node(value))
        elif number == 5:
            name, array = _tensor(value)
            weights[name] = array
        elif number in (11, 12):
            names = [text(part) for field, part in fields(value) if field == 1]
            (inputs if number == 11 else outputs).extend(names)
    return ValuedGraph(tuple(nodes), tuple(name for name in inputs if name not in weights), tuple(outputs), weights)


def _node(message: memoryview) -> ValuedNode:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: [], 7: []}
    attributes: dict[str, Attribute] = {}
    for number, value in fields(message):
        if number in texts:
            texts[number].append(text(value))
        elif number == 5 and not isinstance(value, int):
            name, attribute = _attribute(value)
            attributes[name] = attribute
    return ValuedNode(
        name="".join(texts[3]),
        op="".join(texts[4]),
        domain="".join(texts[7]),
        inputs=tuple(texts[1]),
        outputs=tuple(texts[2]),
        attributes=attributes,
    )


def _attribute(message: memoryview) -> tuple[str, Attribute]:
    name = ""
    found: Attribute = 0  # what protobuf means by leaving a number out
    integers: list[int] = []
    strings: list[str] = []
    kind = 0
    for number, value in fields(message):
        if number == 1:
            name = text(value)
        elif number == 2 and not isinstance(value, int):
            found = float(struct.unpack("<f", value)[0])
        elif number == 3 and isinstance(value, int):
            found = signed(value)
        elif number == 4:
            found = text(value)
        elif number == 5 and not isinstance(value, int):
            found = _tensor(value)[1]
        elif number == 8:
            integers += [signed(item) for item in packed_varints(value)]
        elif number == 9:
            strings.append(text(value))
        elif number == 20 and isinstance(value, int):
            kind = value
    if kind == 7:  # INTS, AttributeProto.AttributeType
        return name, tuple(integers)
    if kind == 8:
        return name, tuple(strings)
    return name, found


def _tensor(message: memoryview) -> tuple[str, Array]:
    shape: list[int] = []
    element, name = 0, ""
    raw: memoryview | None = None
    integers: list[int] = []
    typed: list[float] = []
    for number, value in fields(message):
        if number == 1:
            shape += packed_varints(value)
        elif number == 2 and isinstance(value, int):
            element = value
        elif number == 8:
            name = text(value)
        elif number == 9 and not isinstance(value, int):
            raw = value
        elif number in (5, 7):
            integers += [signed(item) for item in packed_varints(value)]
        elif number in _TYPED and not isinstance(value, int):
            code, size = _TYPED[number]
            typed += struct.unpack(f"<{len(value) // size}{code}", value)
        elif number in (13, 14):
            raise WireError(f"weight {name!r} in another file")
    if ELEMENT_NAMES.get(element) not in _DTYPES:
        raise WireError(f"weight {name!r} of element type {element}")
    dtype = np.dtype(ELEMENT_NAMES[element])
    if raw is not None:
        # Copied, because a weight in a file begins anywhere and NumPy multiplies only aligned arrays with BLAS.
        array = np.frombuffer(raw, dtype=dtype.newbyteorder("<")).astype(dtype, copy=True)
    elif dtype == np.float16:
        array = np.array(integers, np.uint16).view(np.float16)
    else:
        array = np.array(typed or integers, dtype)
    return name, array.reshape(shape)
