"""Write LayerNorm over whole queries and keys so that its numbers are already those of the heads.

MosaicGPT normalises q and k before it splits them into heads. TensorRT computes a LayerNorm whose result is transposed
next in two kernels, and hands the centred numbers from one to the other in fp32 (seen with TensorRT for RTX 1.7). Split and
transposed first, mean and variance are taken over two axes that are not neighbours, and one kernel does it all.

    LayerNormalization -> Reshape (batch, token, head, element) -> Transpose ..
    becomes Reshape -> Transpose .. -> Cast to fp32 -> mean, variance, division -> Cast to fp16 -> Mul, Add

Requires: types on all values.
Ensures: the same numbers, with the sums in fp32 as LayerNormalization has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import onnx_ir as ir

from rfedge.export.passes.graph_queries import add_constant, array_of, constant_array, only_reader

_HALF: Final = ir.DataType.FLOAT16
_FLOAT: Final = ir.DataType.FLOAT
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
