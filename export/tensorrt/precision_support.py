"""Which number formats which GPU can compute in, checked on the graph before the builder starts.

Sources: TensorRT's support matrix (hardware and precision); bf16, int4 and fp8 tried with TensorRT for RTX 1.7.1 on SM75,
SM86, SM89 and SM120.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from rfedge.bundle.engines import EngineTarget
from rfedge.errors import ExportError
from rfedge.export.precision_audit import block_of_node

# ONNX type -> (name, first compute capability that has it, what to do without)
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
            raise ExportError(
                f"graph for {where}", got=f"{_NEVER[element_type]} in {user}", expected="fp32, fp16, bf16 or int8",
                        remedy="Export the bundle in one of these.")  # fmt: skip
        if element_type in _FORMATS:
            name, first, remedy = _FORMATS[element_type]
            if target.sm < first:
                raise ExportError(
                    f"graph for {where}", got=f"{name} in {user}", expected=f"SM{first} or newer for {name}",
                            remedy=remedy)  # fmt: skip
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
