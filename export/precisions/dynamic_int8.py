"""ONNX Runtime's dynamic int8, the graph that its own quantizer writes, with one weight in memory at a time.

    DynamicQuantizeLinear (uint8, one scale a call) -> MatMulInteger -> Cast -> Mul by both scales

`onnxruntime.quantization.quantize_dynamic` holds several copies of the whole graph, so that 10 GB of weights need more than
23 GB of memory. Here names, nodes and numbers are those of
`quantize_dynamic(op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QInt8)`: MatMuls that read one tensor share
its DynamicQuantizeLinear, weights are symmetric with one scale an output, and a Gemm becomes MatMul and Add first. MatMuls
are chosen as that function does, the camera resize too: so do users of ONNX Runtime quantize, not `rfedge export`. One thing
differs: a weight that something else reads as well stays there in float for it, and is not dequantized.

Source: onnxruntime 1.31, `quantization/onnx_quantizer.py` and `quantization/operators/matmul.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from rfedge.export.int8.rounding import round_nearest
from rfedge.export.passes.graph_files import WeightProgress, read_graph, write_graph
from rfedge.export.passes.graph_queries import add_computed, is_weight_matmul
from rfedge.export.precisions.weight_parts import Array, WeightParts, finite_weight, weight_shape

__all__ = ["make_dynamic_int8"]

_FLOAT = ir.TensorType(ir.DataType.FLOAT)


class _Quantized(NamedTuple):
    """A tensor in eight bits: its numbers, their scale and their zero point."""

    numbers: ir.Value
    scale: ir.Value
    zero_point: ir.Value


def make_dynamic_int8(source: Path, target: Path, *, on_weight: WeightProgress = lambda *_: None) -> int:
    """Write the graph at `source` with dynamic int8 MatMuls to `target` and return how many they are.

    Args:
        source: fp32 graph, weights in it or in a file beside it.
        target: the file to write; weights above 1.5 GB go into `target` + ".data".
        on_weight: called with (weights written, weights in all).

    Raises:
        ArtifactError: `source` is no graph.
        ExportError: a weight holds NaN or Inf, which the text names.
    """
    model = read_graph(source)
    graph = model.graph
    sources: dict[ir.Value, _Quantized] = {}
    weights: dict[ir.Value, _Quantized] = {}
    num_matmuls = 0
    for node in list(graph):
        if not is_weight_matmul(node) or node.inputs[1] is None or node.inputs[1].dtype != ir.DataType.FLOAT:
            continue
        transposed = False
        if node.op_type == "Gemm":
            if not _is_plain_gemm(node):
                continue
            transposed = bool(node.attributes.get_int("transB", 0))
            node = _split_gemm(graph, node)
        read, weight = node.inputs[0], node.inputs[1]
        assert read is not None, f"{node.name} reads nothing"
        assert weight is not None, f"{node.name} has no weight"
        if read not in sources:
            sources[read] = _quantize_source(graph, node, read)
        if weight not in weights:
            weights[weight] = _quantize_weight(graph, weight, transposed=transposed)
        _replace(graph, node, sources[read], weights[weight])
        num_matmuls += 1
    for weight in weights:
        if not weight.uses() and not weight.is_graph_output():
            del graph.initializers[str(weight.name)]
    write_graph(model, target, on_weight=on_weight)
    return num_matmuls


def _is_plain_gemm(node: ir.Node) -> bool:
    """Whether a Gemm is a MatMul and a sum; the quantizer leaves others alone."""
    attributes = node.attributes
    return (
        attributes.get_float("alpha", 1.0) == 1.0
        and attributes.get_float("beta", 1.0) == 1.0
        and attributes.get_int("transA", 0) == 0
    )


def _split_gemm(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """Put MatMul and Add where a Gemm stands; return the MatMul, whose weight may still be transposed."""
    output, bias = node.outputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    matmul = ir.node("MatMul", node.inputs[:2], name=f"{node.name}_MatMul")
    nodes, last = [matmul], matmul
    if bias is not None:
        _describe(matmul.outputs[0], f"{output.name}_MatMul", output.shape)
        last = ir.node("Add", [matmul.outputs[0], bias], name=f"{node.name}_Add")
        nodes.append(last)
    for made in nodes:
        made.metadata_props.update(node.metadata_props)
    _put(graph, node, nodes, last.outputs[0])
    return matmul


def _quantize_source(graph: ir.Graph, node: ir.Node, read: ir.Value) -> _Quantized:
    """Put DynamicQuantizeLinear before the first MatMul that reads the tensor."""
    name = str(read.name)
    new = ir.node("DynamicQuantizeLinear", [read], num_outputs=3, name=f"{name}_QuantizeLinear")
    new.metadata_props.update(node.metadata_props)
    quantized = _Quantized(*new.outputs)
    quantized.numbers.name, quantized.scale.name = f"{name}_quantized", f"{name}_scale"
    quantized.zero_point.name = f"{name}_zero_point"
    quantized.numbers.dtype = quantized.zero_point.dtype = ir.DataType.UINT8
    quantized.numbers.shape, quantized.scale.type = read.shape, _FLOAT
    graph.insert_before(node, new)
    return quantized


def _quantize_weight(graph: ir.Graph, weight: ir.Value, *, transposed: bool) -> _Quantized:
    shape = weight_shape(weight)
    rows, columns = shape[::-1] if transposed else shape
    read, name = finite_weight(weight), str(weight.name)

    def by_column() -> Mapping[str, Array]:
        numbers, scales = round_nearest(read().T if transposed else read())
        return {"numbers": numbers, "scales": scales}

    parts = WeightParts(by_column)
    return _Quantized(
        add_computed(graph, f"{name}_quantized", parts.part("numbers"), ir.DataType.INT8, (rows, columns)),
        add_computed(graph, f"{name}_scale", parts.part("scales"), ir.DataType.FLOAT, (columns,)),
        add_computed(graph, f"{name}_zero_point", lambda: np.zeros(columns, np.int8), ir.DataType.INT8, (columns,)),
    )


def _replace(graph: ir.Graph, node: ir.Node, source: _Quantized, weight: _Quantized) -> None:
    """Put the integer MatMul, with what makes floats of it, where the MatMul stands."""
    output, name = node.outputs[0], f"{node.name}_quant"
    factors = [source.numbers, weight.numbers, source.zero_point, weight.zero_point]
    matmul = ir.node("MatMulInteger", factors, name=name)
    sums = matmul.outputs[0]
    sums.name, sums.shape, sums.dtype = f"{output.name}_output_quantized", output.shape, ir.DataType.INT32
    cast = ir.node("Cast", [sums], attributes={"to": int(ir.DataType.FLOAT)}, name=f"{sums.name}_cast")
    _describe(cast.outputs[0], f"{sums.name}_cast_output", output.shape)
    scales = ir.node("Mul", [source.scale, weight.scale], name=f"{name}_scales_mul")
    _describe(scales.outputs[0], f"{name}_scales_mul:0", weight.scale.shape)
    scaled = ir.node("Mul", [cast.outputs[0], scales.outputs[0]], name=f"{name}_output_scale_mul")
    for new in (matmul, cast, scales, scaled):
        new.metadata_props.update(node.metadata_props)
    _put(graph, node, [matmul, cast, scales, scaled], scaled.outputs[0])


def _describe(value: ir.Value, name: str, shape: ir.Shape | None) -> None:
    value.name, value.shape, value.type = name, shape, _FLOAT


def _put(graph: ir.Graph, old: ir.Node, nodes: list[ir.Node], result: ir.Value) -> None:
    """Put `nodes` where `old` stands; what read its output reads `result`, under the same name."""
    before = old.outputs[0]
    _describe(result, str(before.name), before.shape)
    before.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.insert_before(old, nodes)
    graph.remove(old, safe=True)
