"""The form that TensorRT computes a bundle's graph in: int8 where the graph has Q/DQ pairs, fp16 elsewhere, islands in fp32.

It is made in memory when an engine is built or proved, out of the one graph that the bundle holds, so that no weight is
stored twice: matrices are int8 or fp16 there already. In fp16 alone the builder fuses attention, and it computes the sums
of LayerNorm in fp32 by itself.

Case 1: a Cast between floats is dropped; the types are set anew, one Cast per tensor where an island begins or ends.
Case 2: in an int8 MatMul the builder multiplies the integers, scales the sums by the activation's scale, writes them in fp16
and scales each column by its weight's scale. Sums that are scaled by the activation alone may lie beyond 65504, so a power
of two moves from the weight's scales to the activation's; it also lifts small weight scales out of fp16's subnormals.
Case 3: a constant below -30000 hides keys from a softmax, or padding from a maximum: fp16 has -10000 in its place, which
hides as well and is finite after logits are added.

Case 4: RMSNorm squares and sums in fp32, as LayerNorm does inside its one operator: a square leaves fp16 beyond 256.
Case 5: LayerNorm of whole queries and keys, as MosaicGPT has it, moves behind the split into heads. TensorRT computes a
LayerNorm whose result is transposed next in two kernels, and hands the centred numbers from one to the other in fp32 (seen
with TensorRT for RTX 1.7). Split and transposed first, mean and variance are taken over two axes that are not neighbours,
and one kernel does it all:

    LayerNormalization -> Reshape (batch, token, head, element) -> Transpose ..
    becomes Reshape -> Transpose .. -> Cast to fp32 -> mean, variance, division -> Cast to fp16 -> Mul, Add

Requires: standard operators, types on all values after shape inference.
Ensures: no node reads two float types; inputs and outputs have the types of the contract.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import onnx_ir as ir

from rfedge.errors import ExportError
from rfedge.export.int8.matmuls import ALWAYS_FLOAT
from rfedge.export.passes.graph_queries import (
    add_constant,
    array_of,
    block_of,
    constant_array,
    input_of,
    is_constant,
    only_reader,
    parent,
    static_shape,
)
from rfedge.export.passes.slim import infer_shapes
from rfedge.export.precisions.form_matmuls import CAMERA_CHANNELS, CONVOLUTION
from rfedge.export.precisions.half import set_types

_FLOAT: Final = ir.DataType.FLOAT
_HALF: Final = ir.DataType.FLOAT16
_SMALLEST_NORMAL: Final = float(np.finfo(np.float16).smallest_normal)
_SMALLEST: Final = float(np.finfo(np.float16).smallest_subnormal)
_HIDES: Final = -30000.0
# What hides a key from a softmax in fp16.
HIDDEN: Final = -10000.0
_LARGEST_MASK: Final = 1 << 20


class Int8MatMul(NamedTuple):
    """MatMul(DQ(Q(x)), DQ(weight)); both scales are constants."""

    node: ir.Node
    quantize: ir.Node
    dequantize: ir.Node
    weight: ir.Node


def default_islands(model: ir.Model) -> dict[str, str]:
    """Return node -> why it stays in fp32 whatever its numbers are: camera resize, and convolution over the camera."""
    found = {}
    for node in model.graph:
        if block_of(node).startswith("preprocess"):
            found[str(node.name)] = ALWAYS_FLOAT["preprocess"]
        elif node.op_type == "Conv" and node.inputs[1] is not None and _channels(node.inputs[1]) == CAMERA_CHANNELS:
            found[str(node.name)] = CONVOLUTION
    return found


def int8_matmuls(graph: ir.Graph) -> list[Int8MatMul]:
    """Return the MatMuls whose factors are both dequantized int8."""
    found = []
    for node in graph:
        if node.op_type != "MatMul" or node.domain:
            continue
        read, weight = parent(node, 0, "DequantizeLinear"), parent(node, 1, "DequantizeLinear")
        quantize = parent(read, 0, "QuantizeLinear") if read is not None else None
        if read is None or weight is None or quantize is None or not is_constant(weight.inputs[0]):
            continue
        found.append(Int8MatMul(node, quantize, read, weight))
    return found


def to_engine_form(model: ir.Model, islands: Collection[str]) -> None:
    """Change `model` in place: all floats become fp16 but those of the nodes named in `islands`.

    Raises:
        ExportError: a weight is NaN or beyond fp16, or a value has no type; the text names it.
    """
    graph = model.graph
    infer_shapes(model)
    _drop_casts(graph)
    for value in list(graph.initializers.values()):
        if value.dtype == _FLOAT and not value.is_graph_output():
            array = constant_array(value, largest=_LARGEST_MASK)
            if array is not None and (array < _HIDES).any():
                softened = np.where(array < _HIDES, np.float32(HIDDEN), array)
                value.replace_all_uses_with(add_constant(graph, f"{value.name}/hidden", softened))
                del graph.initializers[str(value.name)]
    sums = _rms_sums(graph)
    kept = {node for node in graph if node.name in islands}
    for matmul in int8_matmuls(graph):
        if matmul.node in kept:  # what dequantizes for it gives fp32 too
            kept |= {matmul.dequantize, matmul.weight}
        else:
            _balance_scales(graph, matmul)
    half = {node for node in graph if node not in kept and node not in sums}
    for node in graph:
        for output in node.outputs:
            if output.dtype is None and output.uses():
                raise ExportError(
                    f"node {node.name} ({node.op_type})",
                    got="a result without a type",
                    expected="standard ONNX operators",
                    remedy="Run this bundle with onnxruntime.",
                )
    set_types(model, half, _HALF)
    normalise_in_heads(graph)


def _rms_sums(graph: ir.Graph) -> set[ir.Node]:
    """Return what RMSNorm computes before its weight: x / sqrt(mean(x x) + epsilon)."""
    found: set[ir.Node] = set()
    for node in graph:
        root = parent(node, 1, "Sqrt") if node.op_type == "Div" else None
        total = parent(root, 0, "Add") if root is not None else None
        mean = next((mean for index in (0, 1) if total and (mean := parent(total, index, "ReduceMean")) is not None), None)
        square = parent(mean, 0, "Mul", "Pow") if mean is not None else None
        if root is not None and total is not None and mean is not None and square is not None:
            found |= {square, mean, total, root, node}
    return found


def _drop_casts(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type != "Cast" or node.domain:
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source is None or source.dtype not in (_FLOAT, _HALF) or result.dtype not in (_FLOAT, _HALF):
            continue
        if result.is_graph_output() and (source.is_graph_input() or source.producer() is None):
            continue
        result.replace_all_uses_with(source, replace_graph_outputs=True)
        if result.name in {output.name for output in graph.outputs} or source.is_graph_output():
            source.name = result.name
        graph.remove(node, safe=True)


def _balance_scales(graph: ir.Graph, matmul: Int8MatMul) -> None:
    """Case 2; scales stay in fp32 here, `set_types` rounds them."""
    scale, columns = (array_of(node.inputs[1]).astype(np.float64) for node in (matmul.dequantize, matmul.weight))
    largest = float(columns.max(initial=0.0))
    power = np.exp2(np.ceil(np.log2(max(largest, _SMALLEST_NORMAL / float(scale.max())))))
    for node, array in ((matmul.dequantize, scale * power), (matmul.weight, np.maximum(columns / power, _SMALLEST))):
        old = input_of(node, 1)
        node.replace_input_with(1, add_constant(graph, f"{node.name}/scale", array.astype(np.float32)))
        if not old.uses():
            del graph.initializers[str(old.name)]


def _channels(weight: ir.Value) -> int | None:
    shape = static_shape(weight)
    return shape[1] if shape is not None and len(shape) == 4 else None


_HEAD, _ELEMENT = 2, 3


class _Norm(NamedTuple):
    """A LayerNorm, the Reshape after it, and the Transposes after that with what they come to."""

    norm: ir.Node
    reshape: ir.Node
    transposes: list[ir.Node]
    order: list[int]


def normalise_in_heads(graph: ir.Graph) -> int:
    """Rewrite the graph in place and return the number of LayerNorms that were moved behind the heads."""
    found = [norm for node in graph if (norm := _norm_before_heads(node)) is not None]
    for norm in found:
        _rewrite(graph, norm)
    return len(found)


def _norm_before_heads(node: ir.Node) -> _Norm | None:
    if node.op_type != "LayerNormalization" or node.outputs[0].dtype != _HALF:
        return None
    if node.attributes.get_int("axis", -1) not in (-1, 2) or len(node.outputs) > 1:
        return None
    if any(constant_array(value) is None for value in node.inputs[1:] if value is not None):
        return None
    reshape = only_reader(node.outputs[0])
    if reshape is None or reshape.op_type != "Reshape" or reshape.outputs[0].shape is None:
        return None
    if len(reshape.outputs[0].shape) != 4 or not all(isinstance(size, int) for size in reshape.outputs[0].shape[_HEAD:]):
        return None
    transposes, order, value = [], [0, 1, 2, 3], reshape.outputs[0]
    while (reader := only_reader(value)) is not None and reader.op_type == "Transpose":
        order = [order[axis] for axis in reader.attributes.get_ints("perm", [3, 2, 1, 0])]
        transposes.append(reader)
        value = reader.outputs[0]
    return _Norm(node, reshape, transposes, order) if transposes else None


def _rewrite(graph: ir.Graph, found: _Norm) -> None:
    norm, reshape, transposes, order = found
    last = transposes[-1].outputs[0]
    readers, shape = tuple(last.uses()), last.shape
    reshape.replace_input_with(0, norm.inputs[0])
    axes = add_constant(graph, f"{norm.name}/axes", np.array([order.index(_HEAD), order.index(_ELEMENT)], np.int64))
    epsilon = add_constant(graph, f"{norm.name}/epsilon", np.array(norm.attributes.get_float("epsilon", 1e-5), np.float32))
    made: list[ir.Node] = []

    def add(op_type: str, name: str, inputs: Sequence[ir.Value], dtype: ir.DataType, **attributes: Any) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes, name=f"{norm.name}/{name}")
        value = node.outputs[0]
        value.name, value.type = f"{norm.name}/{name}", ir.TensorType(dtype)
        value.shape = None if op_type == "ReduceMean" or name in ("variance_epsilon", "deviation") else shape
        node.metadata_props.update(norm.metadata_props)
        made.append(node)
        return value

    wide = add("Cast", "wide", [last], _FLOAT, to=int(_FLOAT))
    centred = add("Sub", "centred", [wide, add("ReduceMean", "mean", [wide, axes], _FLOAT, keepdims=1)], _FLOAT)
    square = add("Mul", "square", [centred, centred], _FLOAT)
    variance = add("ReduceMean", "variance", [square, axes], _FLOAT, keepdims=1)
    deviation = add("Sqrt", "deviation", [add("Add", "variance_epsilon", [variance, epsilon], _FLOAT)], _FLOAT)
    value = add("Cast", "narrow", [add("Div", "divided", [centred, deviation], _FLOAT)], _HALF, to=int(_HALF))
    for op_type, index in (("Mul", 1), ("Add", 2)):
        constant = norm.inputs[index] if index < len(norm.inputs) else None
        if constant is not None:
            assert reshape.outputs[0].shape is not None, f"{reshape.name} has a shape"
            heads, elements = (int(size) for size in reshape.outputs[0].shape[_HEAD:])  # type: ignore[arg-type]
            part = np.ascontiguousarray(array_of(constant).reshape(1, 1, heads, elements).transpose(order))
            value = add(
                op_type, op_type.lower(), [value, add_constant(graph, f"{norm.name}/{op_type.lower()}/heads", part)], _HALF
            )
    graph.insert_after(transposes[-1], made)
    for reader, index in readers:
        reader.replace_input_with(index, value)
    graph.remove(norm, safe=True)
