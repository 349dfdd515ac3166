"""Bring the exporter's scaled dot-MatMul attention into the shortest form that says the same.

The exporter transposes the keys through three axes (Reshape, Transpose, Reshape) and multiplies queries and keys each by
the root of the scale, one Mul apiece.

Case 1: Reshape (…, L, D) to three axes, Transpose of the last two, Reshape back -> one Transpose of the last two. L may be
free; what computed the shapes is then read by nobody, and `DropDead` takes it.
Case 2: MatMul(Mul(q, a), Mul(k, b)) -> MatMul(Mul(q, a b), k), for constants of one element.
ONNX Runtime then makes one kernel of Mul, Transpose and MatMul (FusedMatMul), and copies no keys.

Requires: no quantizers.
Ensures: neither case is left.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from rfedge.arrays import Array
from rfedge.export.passes.graph_pass import GraphPass
from rfedge.export.passes.graph_queries import (
    add_constant,
    array_of,
    is_constant,
    named_shape,
    only_reader,
    parent,
    replace_node,
    single_number,
    static_shape,
)
from rfedge.export.passes.slim import infer_shapes


class _Scale(NamedTuple):
    """A Mul by one number: the node, the place of the number among its inputs, and the number."""

    node: ir.Node
    place: int
    number: Array


class CompactAttention(GraphPass):
    """One Transpose for the keys, one Mul for the scale."""

    name = "compact-attention"

    def rewrite(self, model: ir.Model) -> list[str]:
        graph = model.graph
        infer_shapes(model)
        changes = []
        for node in list(graph):
            found = _flat_transpose(node)
            if found is not None:
                first, middle, rank = found
                order = [*range(rank - 2), rank - 1, rank - 2]
                name = str(node.name)
                new = ir.node("Transpose", [first.inputs[0]], attributes={"perm": order}, name=name)
                replace_node(node, new)
                graph.remove([middle, first], safe=True)
                changes.append(f"{name}: three nodes become one Transpose")
        for node in list(graph):
            scales = _two_scales(node)
            if scales is not None:
                left, right = scales
                number = float(left.number.item()) * float(right.number.item())
                merged = np.full(left.number.shape, number, left.number.dtype)
                left.node.replace_input_with(left.place, add_constant(graph, f"{left.node.name}.scale", merged))
                node.replace_input_with(1, right.node.inputs[1 - right.place])
                graph.remove(right.node, safe=True)
                changes.append(f"{node.name}: {right.node.name} into {left.node.name}")
        return changes

    def is_left(self, node: ir.Node) -> bool:
        return _flat_transpose(node) is not None or _two_scales(node) is not None


def _flat_transpose(last: ir.Node) -> tuple[ir.Node, ir.Node, int] | None:
    """Case 1, seen from its last node: (first Reshape, Transpose, rank of the keys)."""
    if last.op_type != "Reshape" or last.domain:
        return None
    middle = parent(last, 0, "Transpose")
    first = parent(middle, 0, "Reshape") if middle is not None else None
    if middle is None or first is None or list(middle.attributes.get_ints("perm", [])) != [0, 2, 1]:
        return None
    if only_reader(middle.outputs[0]) is not last or only_reader(first.outputs[0]) is not middle:
        return None
    before, flat, after = (named_shape(value) for value in (first.inputs[0], first.outputs[0], last.outputs[0]))
    if before is None or flat is None or after is None or len(before) < 3 or len(flat) != 3:
        return None
    *batch, rows, columns = before
    if flat[1:] != (rows, columns) or after != (*batch, columns, rows):
        return None
    return first, middle, len(before)


def _scale_before(node: ir.Node, index: int) -> _Scale | None:
    """Return the Mul by one number that makes this factor."""
    scale = parent(node, index, "Mul")
    if scale is None or only_reader(scale.outputs[0]) is not node:
        return None
    place = next((place for place in (1, 0) if single_number(scale.inputs[place]) is not None), None)
    if place is None or is_constant(scale.inputs[1 - place]):
        return None
    number, other = static_shape(scale.inputs[place]), static_shape(scale.inputs[1 - place])
    if number is None or (other is not None and len(number) > len(other)):
        return None
    return _Scale(scale, place, array_of(scale.inputs[place]))


def _two_scales(node: ir.Node) -> tuple[_Scale, _Scale] | None:
    """Case 2: the Muls before the first and before the second factor."""
    if node.op_type != "MatMul" or node.domain:
        return None
    left, right = _scale_before(node, 0), _scale_before(node, 1)
    return (left, right) if left is not None and right is not None else None
