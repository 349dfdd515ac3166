"""The few changes a bundle's graph needs before TensorRT's parser takes it; the bundle's own file stays as it is.

Case 1: with fp16 for floats, the graph takes that form (`engine_form`).
Case 2: TensorRT knows uint8 only at the border of a graph. Camera frames enter as uint8 rows of pixels, are transposed
and then cast; here they are cast first and transposed after. Both orders give the same numbers.
Case 3: a node without a name gets one, so that errors and the audit can tell which one it is.

Requires: a graph with static shapes, or dynamic ones at its inputs only.
Ensures: no node but a Cast reads a uint8 graph input, unless the parser is to refuse it; every node has a name.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

import onnx
import onnx_ir as ir
from onnx import TensorProto

from rfedge.export.passes.graph_files import read_graph
from rfedge.export.tensorrt.engine_form import to_engine_form

# Part of the cache key: raise it when the changes below change.
PREPARATION: Final = 3


def load_graph(data: bytes) -> onnx.ModelProto:
    """Read a serialized graph; weights in files beside it stay there."""
    model = onnx.ModelProto()
    model.ParseFromString(data)
    return model


def prepare_graph(path: Path, *, islands: Collection[str] | None = None) -> onnx.ModelProto:
    """Return the graph in the file `path`, changed for TensorRT; large weights in a file beside it stay there.

    Args:
        path: of a bundle.
        islands: nodes that stay in fp32 while all other floats are fp16; None leaves every type as it is.

    Raises:
        ExportError: a weight that fp16 cannot hold.
    """
    if islands is None:
        model = load_graph(path.read_bytes())
    else:
        changed = read_graph(path)
        to_engine_form(changed, islands)
        model = ir.to_proto(changed)
    return finish_graph(model)


def finish_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make the changes that do not depend on types, in place, and return `model`."""
    cast_bytes_first(model)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return model


def cast_bytes_first(model: onnx.ModelProto) -> int:
    """Rewrite `Transpose(uint8) -> Cast` as `Cast -> Transpose` in place; return the number of pairs changed."""
    graph = model.graph
    inputs = {value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    changed = 0
    for transpose in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in inputs]:
        between = transpose.output[0]
        following = readers.get(between, [])
        if between in outputs or [node.op_type for node in following] != ["Cast"]:
            continue  # left for the parser, which names the node it refuses
        cast = following[0]
        first, second = onnx.NodeProto(), onnx.NodeProto()
        first.CopyFrom(cast)
        second.CopyFrom(transpose)
        first.input[0], first.output[0] = transpose.input[0], between
        second.input[0], second.output[0] = between, cast.output[0]
        transpose.CopyFrom(first)
        cast.CopyFrom(second)
        for value in [value for value in graph.value_info if value.name == between]:
            graph.value_info.remove(value)  # it said uint8
        changed += 1
    return changed
