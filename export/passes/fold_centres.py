"""Take what int8 centres a MatMul's input by off in passing, without an operator of its own.

Behind attention, off its values. It returns means of values, with weights that add up to 1: to take a constant vector off
each value is to take it off each mean. So Attention(q, k, v + bias) -> Sub centre is Attention(q, k, v + (bias - centre));
numbers differ in the last bits, an integer only where it lay that near to a half.

Before uint8, by its zero point. Where all channels have one centre of k steps, Sub k s -> QuantizeLinear(s, 128) becomes
QuantizeLinear(s, 128 - k); readers still take off 128. An integer differs only where x / s lies within 2^-13 of a half.

Requires: attention as one operator (`FuseAttention`), values with a bias of their own; integer kernels.
Ensures: no such Sub is left.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from rfedge.export.passes.drop_dead import DropDead
from rfedge.export.passes.graph_pass import MatchPass
from rfedge.export.passes.graph_queries import add_constant, array_of, constant_array, only_reader, parent
from rfedge.export.precisions.int8_kernel import KERNEL

_KERNEL_BIAS = 6
_OFF: Final = 2.0**-13  # of a step: what float32 leaves of a whole number of steps, 127 at most


class _Found(NamedTuple):
    """The Sub, the node that adds the bias to the values, and where the bias is among its inputs."""

    sub: ir.Node
    biased: ir.Node
    place: int


class FoldCentres(MatchPass[_Found]):
    """Centres after attention into the bias of its values."""

    name = "fold-centres"
    takes_quantized = True
    left = "still has its centre taken off behind it"

    def match(self, node: ir.Node) -> _Found | None:
        if node.op_type != "Attention" or node.domain:
            return None
        values = node.inputs[2]
        sub = only_reader(node.outputs[0])
        if values is None or only_reader(values) is not node or sub is None:
            return None
        if sub.op_type != "Sub" or sub.domain or sub.inputs[0] is not node.outputs[0] or sub.outputs[0].is_graph_output():
            return None
        biased = values.producer()
        if biased is None:
            return None
        if biased.op_type == KERNEL and len(biased.inputs) > _KERNEL_BIAS:
            places = [_KERNEL_BIAS]
        elif (add := parent(node, 2, "Add")) is not None:
            places = [index for index, value in enumerate(add.inputs) if constant_array(value) is not None]
        else:
            return None
        centre = constant_array(sub.inputs[1])
        for place in places:
            bias = constant_array(biased.inputs[place])
            if bias is not None and centre is not None and bias.ndim == 1 and bias.shape == centre.shape:
                return _Found(sub, biased, place)
        return None

    def replace(self, graph: ir.Graph, node: ir.Node, found: _Found) -> str:
        bias, centre = array_of(found.biased.inputs[found.place]), array_of(found.sub.inputs[1])
        moved = add_constant(graph, f"{found.biased.name}/centred_bias", bias - centre)
        found.biased.replace_input_with(found.place, moved)
        found.sub.outputs[0].replace_all_uses_with(node.outputs[0])
        graph.remove(found.sub, safe=True)
        return f"{found.sub.name}: into the bias of {found.biased.name}"

    def rewrite(self, model: ir.Model) -> list[str]:
        changes = super().rewrite(model)
        if changes:
            DropDead().rewrite(model)
        return changes


class CentreByZeroPoint(MatchPass[tuple[ir.Node, int]]):
    """One centre for all channels into the zero point of the uint8 that follows."""

    name = "centre-by-zero-point"
    takes_quantized = True
    left = "still has one centre taken off before it"

    def match(self, node: ir.Node) -> tuple[ir.Node, int] | None:
        sub = parent(node, 0, "Sub") if node.op_type == "QuantizeLinear" and len(node.inputs) > 2 else None
        if sub is None:
            return None
        centre, step, zero = constant_array(sub.inputs[1]), constant_array(node.inputs[1]), constant_array(node.inputs[2])
        if centre is None or step is None or zero is None or step.size != 1 or zero.dtype != np.uint8 or np.ptp(centre):
            return None
        steps = float(centre.flat[0]) / float(step.reshape(()))
        number = round(steps)
        if abs(steps - number) > _OFF or not 0 <= int(zero.reshape(())) - number <= 255:
            return None
        return sub, int(zero.reshape(())) - number

    def replace(self, graph: ir.Graph, node: ir.Node, found: tuple[ir.Node, int]) -> str:
        sub, zero = found
        node.replace_input_with(0, sub.inputs[0])
        node.replace_input_with(2, add_constant(graph, f"{node.outputs[0].name}/zero_point", np.array(zero, np.uint8)))
        if not sub.outputs[0].uses():
            graph.remove(sub, safe=True)
        return f"{sub.name}: into the zero point of {node.outputs[0].name}"
