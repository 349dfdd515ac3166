"""The few changes a bundle's graph needs before TensorRT's parser takes it; the bundle's own file stays as it is.

Case 1: with fp16 for floats, the graph takes that form (`engine_form`).
Case 2: TensorRT knows uint8 only at the border of a graph: camera frames are cast first and transposed after.
Case 3: a node without a name gets one, so that errors and the audit can tell which one it is.

Requires: a graph with static shapes, or dynamic ones at its inputs only.
Ensures: no node but a Cast reads a uint8 graph input, unless the parser is to refuse it; every node has a name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper

from rfedge.bundle.artifact import Bundle
from rfedge.bundle.engines import EngineTarget
from rfedge.contract import GraphName
from rfedge.errors import ConfigError, ExportError
from rfedge.export.passes.graph_files import read_graph
from rfedge.export.passes.graph_queries import only_reader
from rfedge.export.precision_audit import block_of_node
from rfedge.export.tensorrt.engine_form import default_islands, to_engine_form

# ONNX type -> (name, first compute capability that has it, what to do without). Sources: TensorRT's support matrix; bf16,
# int4 and fp8 tried with TensorRT for RTX 1.7.1 on SM75, SM86, SM89 and SM120.
_FORMATS: Final[dict[int, tuple[str, int, str]]] = {
    TensorProto.BFLOAT16: ("bf16", 80, "Export fp16 or int8."),
    TensorProto.INT4: ("int4", 80, "Export int8."),
    TensorProto.FLOAT8E4M3FN: ("fp8", 89, "Export int8, the fast 8-bit format of this GPU."),
    TensorProto.FLOAT4E2M1: ("fp4", 100, "Export int8."),
}
# Formats that TensorRT has nowhere.
_NEVER: Final[dict[int, str]] = {
    TensorProto.FLOAT8E4M3FNUZ: "fp8 (fnuz)",
    TensorProto.FLOAT8E5M2: "fp8 (e5m2)",
    TensorProto.FLOAT8E5M2FNUZ: "fp8 (e5m2fnuz)",
    TensorProto.UINT4: "unsigned int4",
    TensorProto.INT16: "int16",
    TensorProto.UINT16: "uint16",
}
_QUANTIZERS: Final = ("QuantizeLinear", "DequantizeLinear")


def graph_formats(model: onnx.ModelProto) -> dict[int, str]:
    """Return each ONNX element type that weights, casts and quantizers use -> a node or tensor that does."""
    found: dict[int, str] = {}
    for tensor in model.graph.initializer:
        found.setdefault(tensor.data_type, f"weight {tensor.name}")
    for node in model.graph.node:
        for attribute in node.attribute:
            if (node.op_type == "Cast" and attribute.name == "to") or attribute.name == "output_dtype":
                found.setdefault(attribute.i, f"node {node.name} ({block_of_node(node)})")
    return found


def check_precisions(model: onnx.ModelProto, target: EngineTarget, folder: Path | None = None) -> None:
    """Refuse number formats that `target` lacks, int8 that is not symmetric, and operators that only ONNX Runtime knows."""
    where = f"{target.module} {target.version} on SM{target.sm}"
    for element_type, user in graph_formats(model).items():
        if element_type in _NEVER:
            got, expected = f"{_NEVER[element_type]} in {user}", "fp32, fp16, bf16 or int8"
            raise ExportError(f"graph for {where}", got=got, expected=expected, remedy="Export the bundle in one of these.")
        if element_type in _FORMATS:
            name, first, remedy = _FORMATS[element_type]
            if target.sm < first:
                expected = f"SM{first} or newer for {name}"
                raise ExportError(f"graph for {where}", got=f"{name} in {user}", expected=expected, remedy=remedy)
    _check_domains(model.graph.node, where)
    _check_symmetric(model, where, folder)


def _check_domains(nodes: Iterable[onnx.NodeProto], where: str) -> None:
    for node in nodes:
        if node.domain not in ("", "ai.onnx"):
            reason = "int4 weights in ONNX Runtime's own form" if "NBits" in node.op_type else "an operator of ONNX Runtime"
            got = f"{node.domain}.{node.op_type} at node {node.name} ({block_of_node(node)}), {reason}"
            remedy = "Run this bundle with onnxruntime, or export int8 for TensorRT."
            raise ExportError(f"graph for {where}", got=got, expected="standard ONNX operators", remedy=remedy)


def _check_symmetric(model: onnx.ModelProto, where: str, folder: Path | None) -> None:
    """TensorRT's int8 has no zero-point, and no unsigned 8-bit form."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        zero_point = tensors.get(node.input[2]) if node.op_type in _QUANTIZERS and len(node.input) > 2 else None
        if zero_point is None:
            continue
        unsigned = zero_point.data_type == TensorProto.UINT8
        if unsigned or np.any(numpy_helper.to_array(zero_point, base_dir=str(folder or "")).astype(np.float32)):
            got = f"{'uint8' if unsigned else 'a zero-point'} at node {node.name} ({block_of_node(node)})"
            remedy = "Export the bundle with `rfedge export --precision int8`."
            raise ExportError(f"graph for {where}", got=got, expected="symmetric int8 with zero-point 0", remedy=remedy)


# Part of the cache key: raise it when the changes below change.
PREPARATION: Final = 3


def prepare_graph(path: Path, *, islands: Collection[str] | None = None) -> onnx.ModelProto:
    """Return the graph in the file `path`, changed for TensorRT; with `islands`, floats of all other nodes become fp16."""
    model = read_graph(path)
    if islands is not None:
        to_engine_form(model, islands)
    return finish_graph(model)


def finish_graph(model: ir.Model) -> onnx.ModelProto:
    """Make the changes that do not depend on types, and return the graph as the parser reads it."""
    cast_bytes_first(model.graph)
    for index, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{index}"
    return ir.to_proto(model)


def cast_bytes_first(graph: ir.Graph) -> int:
    """Rewrite `Transpose(uint8) -> Cast` as `Cast -> Transpose` in place; return the number of pairs changed."""
    changed = 0
    for transpose in [node for node in graph if node.op_type == "Transpose"]:
        source, cast = transpose.inputs[0], only_reader(transpose.outputs[0])
        if source is None or not source.is_graph_input() or source.dtype != ir.DataType.UINT8:
            continue
        if cast is None or cast.op_type != "Cast":
            continue  # left for the parser, which names the node it refuses
        between, result = transpose.outputs[0], cast.outputs[0]
        result.replace_all_uses_with(between, replace_graph_outputs=True)
        cast.replace_input_with(0, source)
        transpose.replace_input_with(0, result)
        between.name, result.name = result.name, between.name
        between.type, result.shape = result.type, source.shape
        graph.remove(cast)
        graph.insert_before(transpose, cast)
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
