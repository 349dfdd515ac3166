"""Fold the tanh gate of a cross-attention into the projection before it: (x W) * tanh(g) = x (tanh(g) W).

Case 1: Mul(g, MatMul) or Mul(MatMul, g), where g is a constant of one element (the exporter has computed its tanh).
Case 2: the same with Tanh(g).
Case 3: as either, with a constant bias between MatMul and Mul; the bias is scaled too.

Requires: no quantizers; they would have been calibrated on the unscaled weight.
Ensures: no Tanh of a constant is left, and no constant of one element multiplies what a MatMul alone has made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from rfedge.export.passes.graph_pass import GraphPass
from rfedge.export.passes.graph_queries import (
    add_computed,
    add_constant,
    array_of,
    constant_array,
    drop_unread,
    input_of,
    is_constant,
    is_weight_matmul,
    only_reader,
    single_number,
    tensor_of,
    tensor_shape,
)


class _Gated(NamedTuple):
    gate: float
    scaled: ir.Value
    matmul: ir.Node
    bias: ir.Node | None


class FoldGates(GraphPass):
    """(x W + b) * tanh(g) -> x W' + b', where W' = tanh(g) W and b' = tanh(g) b."""

    name = "fold-gates"
    left = "is still a gate"

    def rewrite(self, model: ir.Model) -> list[str]:
        graph = model.graph
        for node in list(graph):
            if _is_constant_tanh(node):
                if node.outputs[0].is_graph_output():
                    raise ir.passes.PreconditionError(f"pass fold-gates: the output of {node.name} is a constant")
                value = add_constant(graph, f"{node.name}.tanh", np.tanh(array_of(node.inputs[0])))
                node.outputs[0].replace_all_uses_with(value)
                graph.remove(node, safe=True)
        changes = []
        for node in list(graph):
            gated = _gated(node)
            if gated is None:
                continue
            for factor in (gated.matmul, *([gated.bias] if gated.bias is not None else [])):
                # of a MatMul its weight and a Gemm's bias, of an Add its constant
                for index in [index for index, value in enumerate(factor.inputs) if is_constant(value)]:
                    _scale_input(graph, factor, index, gated.gate, node.name or "gate")
            node.outputs[0].replace_all_uses_with(gated.scaled, replace_graph_outputs=True)
            if gated.scaled.is_graph_output():
                gated.scaled.name, node.outputs[0].name = node.outputs[0].name, None
            graph.remove(node, safe=True)
            changes.append(f"{node.name}: gate {gated.gate:.6g} into {gated.matmul.name}")
        return changes

    def is_left(self, node: ir.Node) -> bool:
        return _is_constant_tanh(node) or _gated(node) is not None


def _is_constant_tanh(node: ir.Node) -> bool:
    return node.op_type == "Tanh" and constant_array(node.inputs[0]) is not None


def _gated(node: ir.Node) -> _Gated | None:
    if node.op_type != "Mul" or node.domain:
        return None
    for gate_index in (0, 1):
        gate, scaled = single_number(node.inputs[gate_index]), node.inputs[1 - gate_index]
        if gate is None or scaled is None or not _keeps_shape(node.inputs[gate_index], scaled):
            continue
        bias = scaled.producer()
        if bias is None or only_reader(scaled) is not node:
            continue
        if bias.op_type != "Add":
            if _can_scale(bias):
                return _Gated(gate, scaled, bias, None)
            continue
        for matmul_index in (0, 1):
            summed, constant = bias.inputs[matmul_index], bias.inputs[1 - matmul_index]
            matmul = summed.producer() if summed is not None else None
            if (
                matmul is not None
                and summed is not None
                and is_constant(constant)
                and only_reader(summed) is bias
                and _can_scale(matmul)
            ):
                return _Gated(gate, scaled, matmul, bias)
    return None


def _keeps_shape(gate: ir.Value | None, scaled: ir.Value) -> bool:
    """A gate of shape (1, 1, 1) would add axes to a MatMul of rank two."""
    rank = len(gate.shape) if gate is not None and gate.shape is not None else 0
    return rank == 0 or (scaled.shape is not None and rank <= len(scaled.shape)) or (scaled.shape is None and rank == 1)


def _can_scale(node: ir.Node) -> bool:
    return is_weight_matmul(node) and (len(node.inputs) < 3 or node.inputs[2] is None or is_constant(node.inputs[2]))


def _scale_input(graph: ir.Graph, node: ir.Node, index: int, gate: float, gate_name: str) -> None:
    old = input_of(node, index)
    tensor = tensor_of(old)
    new = add_computed(
        graph,
        f"{old.name}/{gate_name}",
        lambda: tensor.numpy() * tensor.numpy().dtype.type(gate),
        tensor.dtype,
        tensor_shape(tensor),
    )
    node.replace_input_with(index, new)
    drop_unread(graph, old)
