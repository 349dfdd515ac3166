"""The int8 form for CPUs: the MatMuls of a Q/DQ graph as integer kernels that are named, not hoped for.

A Q/DQ graph is what TensorRT fuses. ONNX Runtime finds integer kernels in it only when every MatMul has a pair of its
own, some of its optimizers are off and nothing stands in between; here each MatMul is written as the kernel itself:

    QuantizeLinear (uint8, zero point 128) -> MatMulIntegerToFloat (com.microsoft), the bias inside

The arithmetic is that of the Q/DQ graph: x / s rounded and cut to [-128, 127], then shifted by 128, because the kernels
for uint8 times int8 are the fastest that AVX512-VNNI has (docs/adr/0008). MatMuls that read one tensor with one scale
share its QuantizeLinear. Weights stay as they are, in the same file if they are large.

Source: onnxruntime's contrib operators, MatMulIntegerToFloat.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from rfedge.bundle.int8_kernels import knows_attention
from rfedge.export.passes.drop_dead import DropDead
from rfedge.export.passes.fold_centres import CentreByZeroPoint, FoldCentres
from rfedge.export.passes.fuse_attention import FuseAttention
from rfedge.export.passes.graph_pass import GraphPass
from rfedge.export.passes.graph_queries import (
    add_constant,
    array_of,
    constant_array,
    input_of,
    is_constant,
    only_reader,
    parent,
)
from rfedge.export.passes.quick_gelu import PlainQuickGelu
from rfedge.export.precisions.int8_kernel import UINT8_ZERO, make_kernel
from rfedge.export.precisions.row_int8 import LowerRows, RowMatMul


class _MatMul(NamedTuple):
    """A quantized MatMul: what it reads, the scales, and the bias that is added to it."""

    node: ir.Node
    source: ir.Value
    source_scale: ir.Value
    weight: ir.Value
    weight_scale: ir.Value
    bias: ir.Value | None
    last: ir.Node


class LowerInt8(GraphPass):
    """Q/DQ MatMuls with int8 activations (zero point 0) and int8 weights (one scale a column) -> integer kernels."""

    name = "lower-int8"
    takes_quantized = True

    def rewrite(self, model: ir.Model) -> list[str]:
        graph, changes = model.graph, []
        quantized: dict[tuple[str, float], ir.Value] = {}
        uint8_zero: ir.Value | None = None
        for node in list(graph):
            matmul = _matmul(node)
            if matmul is None:
                continue
            if uint8_zero is None:
                uint8_zero = add_constant(graph, "uint8_zero_point", np.array(UINT8_ZERO, np.uint8))
            source = _quantize(graph, matmul, quantized, uint8_zero)
            kernel = make_kernel(
                graph,
                str(node.name),
                source,
                matmul.weight,
                matmul.source_scale,
                matmul.weight_scale,
                zero_point=uint8_zero,
                bias=matmul.bias,
            )
            _replace(graph, matmul, kernel)
            changes.append(f"{node.name}: an integer kernel")
        DropDead().rewrite(model)
        return changes

    def is_left(self, node: ir.Node) -> bool:
        return _matmul(node) is not None


def lower_int8(source: Path, target: Path, rows: Mapping[str, RowMatMul] = MappingProxyType({})) -> int:
    """Write the CPU form of the Q/DQ graph at `source` to `target`, in the same folder; return the number of kernels.

    Around the kernels, attention and activations are written as onnxruntime's operators for them. The float MatMuls in
    `rows` become kernels with a scale a row. A file of weights beside `source` serves both graphs.
    """
    model = ir.load(source)
    lower = LowerInt8()
    lower(model)
    LowerRows(rows)(model)
    by_attention = (FuseAttention(), FoldCentres()) if knows_attention() else ()
    for graph_pass in (*by_attention, PlainQuickGelu(), CentreByZeroPoint()):
        graph_pass(model)
    ir.save(model, target)
    return len(lower.changes) + len(rows)


def _matmul(node: ir.Node) -> _MatMul | None:
    if node.op_type != "MatMul" or node.domain:
        return None
    read, weight = parent(node, 0, "DequantizeLinear"), parent(node, 1, "DequantizeLinear")
    if read is None or weight is None or not is_constant(weight.inputs[0]):
        return None
    quantize = parent(read, 0, "QuantizeLinear")
    if quantize is None or not _is_int8(quantize, read) or not _is_per_column(weight):
        return None
    source, scale = input_of(quantize, 0), input_of(quantize, 1)
    return _MatMul(node, source, scale, input_of(weight, 0), input_of(weight, 1), *_bias_after(node))


def _is_int8(quantize: ir.Node, dequantize: ir.Node) -> bool:
    """Whether a pair is symmetric int8 with one scale."""
    for node in (quantize, dequantize):
        zero = constant_array(node.inputs[2], largest=1) if len(node.inputs) > 2 else None
        if zero is None or zero.dtype != np.int8 or zero.size != 1 or zero.reshape(()) != 0:
            return False
    scale = constant_array(quantize.inputs[1], largest=1)
    return scale is not None and scale.size == 1


def _is_per_column(dequantize: ir.Node) -> bool:
    """Whether an int8 matrix has one scale a column, or one in all, and zero points of 0."""
    weight, scale = dequantize.inputs[0], dequantize.inputs[1]
    tensor = None if weight is None else weight.const_value
    if tensor is None or tensor.dtype != ir.DataType.INT8 or len(tensor.shape) != 2 or not is_constant(scale):
        return False
    if scale is None or scale.const_value is None:
        return False
    if scale.const_value.size > 1 and dequantize.attributes.get_int("axis", 1) not in (1, -1):
        return False
    zeros = constant_array(dequantize.inputs[2]) if len(dequantize.inputs) > 2 and dequantize.inputs[2] is not None else None
    return zeros is None or not zeros.any()


def _bias_after(node: ir.Node) -> tuple[ir.Value | None, ir.Node]:
    """Return the constant vector that is added to the MatMul, with the node that adds it."""
    reader = only_reader(node.outputs[0])
    if reader is None or reader.op_type != "Add" or reader.domain:
        return None, node
    other = reader.inputs[1] if reader.inputs[0] is node.outputs[0] else reader.inputs[0]
    if other is None or not is_constant(other) or other.const_value is None or len(other.const_value.shape) != 1:
        return None, node
    return other, reader


def _quantize(
    graph: ir.Graph, matmul: _MatMul, quantized: dict[tuple[str, float], ir.Value], zero_point: ir.Value
) -> ir.Value:
    key = (str(matmul.source.name), float(array_of(matmul.source_scale, largest=1).reshape(())))
    if key not in quantized:
        node = ir.node("QuantizeLinear", [matmul.source, matmul.source_scale, zero_point])
        producer = matmul.source.producer()
        node.metadata_props.update((producer or matmul.node).metadata_props)
        node.outputs[0].name = f"{matmul.source.name}.uint8.{len(quantized)}"
        node.outputs[0].shape = matmul.source.shape
        node.outputs[0].dtype = ir.DataType.UINT8
        graph.insert_before(matmul.node, node)
        quantized[key] = node.outputs[0]
    return quantized[key]


def _replace(graph: ir.Graph, matmul: _MatMul, kernel: ir.Node) -> None:
    """Put the kernel where the MatMul and the addition of its bias stand."""
    old = matmul.last.outputs[0]
    new = kernel.outputs[0]
    new.name, new.type, new.shape = old.name, ir.TensorType(ir.DataType.FLOAT), old.shape
    kernel.metadata_props.update(matmul.node.metadata_props)
    graph.insert_after(matmul.last, kernel)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(list(dict.fromkeys([matmul.last, matmul.node])), safe=True)
