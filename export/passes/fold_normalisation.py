"""Fold the camera normalisation into the patch convolution: conv(a x + b, W) = conv(x, a W) + sum over W of b.

Exact, because the convolution has no padding: no zero enters that the normalisation would have shifted.

Case 1: resize -> Mul, Add -> Conv; also Div and Sub, in any order and number, by one number a channel.
Case 2: the same on every branch of a Concat over images (axis 0), with the same numbers on each branch.

The round and clip of the resize before it stay in float: Pillow's arithmetic is float with bytes in between.

Requires: no quantizers.
Ensures: no unpadded convolution with a constant weight reads a per-channel Mul, Add, Div or Sub that no one else reads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from rfedge.arrays import Float64
from rfedge.export.passes.graph_pass import MatchPass
from rfedge.export.passes.graph_queries import (
    add_computed,
    constant_array,
    input_of,
    is_constant,
    only_reader,
    tensor_of,
    tensor_shape,
)

_AFFINE = ("Mul", "Add", "Div", "Sub")


class _Affine(NamedTuple):
    """y = scale * x + shift per channel, over `source`."""

    source: ir.Value
    scale: Float64
    shift: Float64
    nodes: tuple[ir.Node, ...]


class FoldNormalisation(MatchPass[list[_Affine]]):
    """conv(a x + b) -> conv'(x) with a new weight and a new bias."""

    name = "fold-normalisation"
    left = "still reads a normalisation"

    def match(self, node: ir.Node) -> list[_Affine] | None:
        return _affine_branches(node) if _is_open_convolution(node) else None

    def replace(self, graph: ir.Graph, node: ir.Node, found: list[_Affine]) -> str:
        folded = _fold(graph, node, found)
        return f"{node.name}: {folded} nodes of {len(found)} image(s) into its weight and bias"


def _is_open_convolution(node: ir.Node) -> bool:
    if node.op_type != "Conv" or node.domain or not is_constant(node.inputs[1]):
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant_array(node.inputs[2]) is None:
        return False
    padding = node.attributes.get_ints("pads", [0])
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    return not any(padding) and auto in ("NOTSET", "VALID") and node.attributes.get_int("group", 1) == 1


def _affine_branches(convolution: ir.Node) -> list[_Affine] | None:
    """Return the normalisation of every image that the convolution reads, or None where there is no common one."""
    image, channels = input_of(convolution, 0), tensor_shape(tensor_of(input_of(convolution, 1)))[1]
    concat = image.producer()
    if concat is not None and concat.op_type == "Concat" and concat.attributes.get_int("axis", 1) == 0:
        if only_reader(image) is not convolution:
            return None
        branches = [_affine(value, concat, channels) for value in concat.inputs if value is not None]
    else:
        branches = [_affine(image, convolution, channels)]
    first = branches[0]
    same = all(
        np.array_equal(branch.scale, first.scale) and np.array_equal(branch.shift, first.shift) for branch in branches
    )
    return branches if first.nodes and same else None


def _affine(value: ir.Value, reader: ir.Node, channels: int) -> _Affine:
    scale, shift = np.ones(channels), np.zeros(channels)
    nodes: list[ir.Node] = []
    while True:
        node = value.producer()
        if node is None or node.op_type not in _AFFINE or node.domain or only_reader(value) is not reader:
            break
        constants = [_per_channel(operand, channels) for operand in node.inputs]
        index = 1 if constants[1] is not None else 0
        constant, source = constants[index], node.inputs[1 - index]
        if constant is None or source is None or is_constant(source) or (node.op_type == "Div" and index == 0):
            break
        if node.op_type == "Mul":
            scale = scale * constant
        elif node.op_type == "Div":
            scale = scale / constant
        elif node.op_type == "Add" or index == 1:
            shift = shift + scale * (constant if node.op_type == "Add" else -constant)
        else:  # constant - x
            shift, scale = shift + scale * constant, -scale
        nodes.append(node)
        value, reader = source, node
    return _Affine(value, scale, shift, tuple(nodes))


def _per_channel(value: ir.Value | None, channels: int) -> Float64 | None:
    """Return a constant as (channels,) if, against (N, channels, rows, columns), it holds one number a channel."""
    array = constant_array(value)
    if array is None or array.dtype.kind != "f":
        return None
    full = (1,) * max(4 - array.ndim, 0) + array.shape
    if full not in {(1, 1, 1, 1), (1, channels, 1, 1)}:
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,))


def _fold(graph: ir.Graph, convolution: ir.Node, branches: list[_Affine]) -> int:
    weight = input_of(convolution, 1)
    tensor = tensor_of(weight)
    bias = constant_array(convolution.inputs[2]) if len(convolution.inputs) > 2 else None
    scale, shift = branches[0].scale, branches[0].shift
    shape = tensor_shape(tensor)

    def scaled() -> Float64:
        return tensor.numpy() * scale.reshape(1, -1, 1, 1)

    def shifted() -> Float64:
        total = (tensor.numpy().astype(np.float64).sum(axis=(2, 3)) * shift).sum(axis=1)
        result: Float64 = total if bias is None else total + bias
        return result

    new_weight = add_computed(graph, f"{weight.name}/normalised", scaled, tensor.dtype, shape)
    new_bias = add_computed(graph, f"{weight.name}/bias", shifted, tensor.dtype, shape[:1])
    convolution.resize_inputs(3)
    convolution.replace_input_with(1, new_weight)
    convolution.replace_input_with(2, new_bias)
    folded = 0
    for branch in branches:
        branch.nodes[0].outputs[0].replace_all_uses_with(branch.source)
        for node in branch.nodes:
            graph.remove(node, safe=True)
            folded += 1
    return folded
