"""The MatMuls of a fp32 graph that a form of half precision or of rounded weights converts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir

from rfedge.errors import ExportError
from rfedge.export.int8.matmuls import ALWAYS_FLOAT, unknown_block
from rfedge.export.passes.graph_pass import QUANTIZERS
from rfedge.export.passes.graph_queries import block_of, input_of, is_constant, is_weight_matmul, tensor_of, tensor_shape

# Measured in fp16 on playtable-small: with the patch convolution in fp16 the feature's error more than doubles, and it is
# 0.2 % of the work. Its weights hold the camera's 1/255, and its sums lose the bytes' mean to the bias again.
CONVOLUTION = "the patch convolution reads bytes, whose mean its bias takes off again"
CAMERA_CHANNELS = 3
REPAIR = "Repair the checkpoint; no precision can hold this weight."


class FormMatMuls(NamedTuple):
    converted: list[ir.Node]  # MatMul and Gemm
    kernels: list[ir.Node]  # convolutions over features: not over a camera's three channels
    kept_blocks: frozenset[str]  # with a weight, and named in `keep_float`


def choose_matmuls(graph: ir.Graph, keep_float: Sequence[str]) -> FormMatMuls:
    """Find every MatMul and convolution with a weight.

    Raises:
        ConfigError: no block begins with one of `keep_float`.
        ExportError: the graph is already in another form.
    """
    _require_fp32(graph)
    nodes = [node for node in graph if is_weight_matmul(node) or _is_convolution(node)]
    blocks = {node: block_of(node) for node in nodes}
    for prefix in keep_float:
        if not any(block.startswith(prefix) for block in blocks.values()):
            raise unknown_block(prefix, blocks.values())
    free = {node: block for node, block in blocks.items() if not block.startswith(tuple(ALWAYS_FLOAT))}
    kept = frozenset(block for block in free.values() if block.startswith(tuple(keep_float)))
    free = {node: block for node, block in free.items() if block not in kept}
    return FormMatMuls(
        [node for node in free if node.op_type != "Conv"],
        [node for node in free if node.op_type == "Conv" and _channels(node) > CAMERA_CHANNELS],
        kept,
    )


def _require_fp32(graph: ir.Graph) -> None:
    found = next((f"node {node.name} ({node.op_type})" for node in graph if node.op_type in QUANTIZERS), None)
    for value in graph.initializers.values():
        if found is None and value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            found = f"weight {value.name} in {value.dtype.name}"
    if found is not None:
        raise ExportError(
            "graph for another form", got=found, expected="a graph in fp32", remedy="Start from the fp32 export."
        )


def _is_convolution(node: ir.Node) -> bool:
    return node.op_type == "Conv" and node.domain == "" and is_constant(node.inputs[1])


def _channels(convolution: ir.Node) -> int:
    return tensor_shape(tensor_of(input_of(convolution, 1)))[1]
