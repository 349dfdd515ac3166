"""Take the factor out of x sigmoid(1.702 x), the activation of CLIP's vision tower, between two integer kernels.

    kernel -> x -> x sigmoid(a x) -> (- centre) -> QuantizeLinear(scale) -> kernel
    kernel with a times its scales and bias -> QuickGelu with alpha 1 -> (- a centre) -> QuantizeLinear(a scale) -> kernel

ONNX Runtime's QuickGelu multiplies every number by its alpha in a pass of its own unless that is 1: 1.19 and 0.63 ms
for 2 x 257 x 4096 numbers. Behind u = a x the quantizer divides a x sigmoid(a x) by a scale: the same real number as
before, rounded three times on its way (weight scale, bias, scale), so |u / (a s) - x / s| <= 2^-21 |x / s| < 2^-14 of a
step: an integer differs only where x / s lies that near to a half, and then by one step.

Requires: integer kernels (`rfedge.export.precisions.cpu_int8`).
Ensures: no such activation is left between two kernels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from rfedge.export.passes.graph_pass import MatchPass
from rfedge.export.passes.graph_queries import (
    add_constant,
    array_of,
    constant_array,
    drop_unread,
    input_of,
    only_reader,
    parent,
    replace_node,
    single_number,
)
from rfedge.export.precisions.int8_kernel import DOMAIN, KERNEL

_SCALE, _BIAS = 3, 6  # inputs of the kernel


class _Found(NamedTuple):
    kernel: ir.Node
    factor: float
    last: ir.Node
    nodes: tuple[ir.Node, ...]
    centre: ir.Node | None
    quantize: ir.Node


class PlainQuickGelu(MatchPass[_Found]):
    """QuickGelu with alpha 1 between integer kernels."""

    name = "plain-quick-gelu"
    takes_quantized = True
    left = "is an activation that is left"

    def match(self, node: ir.Node) -> _Found | None:
        """Match one activation by its Sigmoid."""
        scaled = parent(node, 0, "Mul") if node.op_type == "Sigmoid" and node.domain == "" else None
        last = only_reader(node.outputs[0]) if scaled is not None else None
        if scaled is None or last is None or last.op_type != "Mul" or only_reader(scaled.outputs[0]) is not node:
            return None
        place = next((index for index in (0, 1) if single_number(scaled.inputs[index]) is not None), None)
        if place is None:
            return None
        source, factor = scaled.inputs[1 - place], single_number(scaled.inputs[place])
        kernel = source.producer() if source is not None else None
        if source is None or kernel is None or factor is None or factor <= 0 or kernel.op_type != KERNEL:
            return None
        if {use.node for use in source.uses()} != {scaled, last} or source.is_graph_output() or source not in last.inputs:
            return None
        if any(constant_array(kernel.inputs[index]) is None for index in (_SCALE, _BIAS) if _has(kernel, index)):
            return None
        centre, quantize = None, only_reader(last.outputs[0])
        if quantize is not None and quantize.op_type == "Sub" and constant_array(quantize.inputs[1]) is not None:
            centre, quantize = quantize, only_reader(quantize.outputs[0])
        if quantize is None or quantize.op_type != "QuantizeLinear" or constant_array(quantize.inputs[1]) is None:
            return None
        return _Found(kernel, factor, last, (node, scaled), centre, quantize)

    def replace(self, graph: ir.Graph, node: ir.Node, found: _Found) -> str:
        kernel = found.kernel
        _scale_input(graph, kernel, _SCALE, found.factor)
        if _has(kernel, _BIAS):
            _scale_input(graph, kernel, _BIAS, found.factor)
        if found.centre is not None:
            _scale_input(graph, found.centre, 1, found.factor)
        _scale_input(graph, found.quantize, 1, found.factor)
        gelu = ir.node("QuickGelu", [kernel.outputs[0]], {"alpha": 1.0}, domain=DOMAIN, name=str(node.name))
        replace_node(found.last, gelu)
        graph.remove(list(found.nodes), safe=True)
        return f"{node.name}: {found.factor:g} moves into {kernel.name} and {found.quantize.outputs[0].name}"


def _has(node: ir.Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] is not None


def _scale_input(graph: ir.Graph, node: ir.Node, index: int, factor: float) -> None:
    """Multiply a constant that a node reads; other readers keep theirs."""
    value = input_of(node, index)
    scaled = (array_of(value).astype(np.float64) * factor).astype(np.float32)
    node.replace_input_with(index, add_constant(graph, f"{value.name}/scaled", scaled))
    drop_unread(graph, value)
