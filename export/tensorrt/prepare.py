"""The few changes a bundle's graph needs before TensorRT's parser takes it; the bundle's own file stays as it is.

Case 1: with fp16 for floats, the graph takes that form (`engine_form`).
Case 2: TensorRT knows uint8 only at the border of a graph: camera frames are cast first and transposed after.
Case 3: a node without a name gets one, so that errors and the audit can tell which one it is.

Requires: a graph with static shapes, or dynamic ones at its inputs only.
Ensures: no node but a Cast reads a uint8 graph input, unless the parser is to refuse it; every node has a name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Final, Literal

import onnx
import onnx_ir as ir
from onnx import TensorProto

from rfedge.bundle.artifact import Bundle
from rfedge.contract import GraphName
from rfedge.errors import ConfigError
from rfedge.export.passes.graph_files import read_graph
from rfedge.export.tensorrt.engine_form import default_islands, to_engine_form

# Part of the cache key: raise it when the changes below change.
PREPARATION: Final = 3


def load_graph(data: bytes) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.ParseFromString(data)
    return model


def prepare_graph(path: Path, *, islands: Collection[str] | None = None) -> onnx.ModelProto:
    """Return the graph in the file `path`, changed for TensorRT; with `islands`, floats of all other nodes become fp16."""
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


def choose_islands(bundle: Bundle, stage: GraphName, floats: Literal["fp16", "fp32"] | None) -> dict[str, str] | None:
    """Return the nodes that stay in fp32 while a graph's other floats are fp16, with the reason; None leaves all types.

    `floats` None takes what the bundle was proved in, of older bundles fp32.
    """
    record = bundle.manifest.tensorrt
    form = None if record is None else record.graphs.get(stage)
    if (floats or (form.floats if form is not None else "fp32")) == "fp32":
        return None
    if any(block.kind == "bf16" for block in bundle.manifest.precision.blocks.values()):
        raise ConfigError("--floats", got="fp16", expected="fp32 for a bundle in bf16", remedy="Leave --floats out.")
    if form is not None and form.islands:
        return form.islands
    return default_islands(read_graph(bundle.path(stage)))


def float_key(islands: Collection[str] | None) -> dict[str, str | int | bool]:
    """Return the part of the cache key that says which floats are fp16."""
    if islands is None:
        return {"floats": "as in the graph"}
    names = hashlib.sha256("\n".join(sorted(islands)).encode()).hexdigest()[:12]
    return {"floats": "fp16", "islands": names}
