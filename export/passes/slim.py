"""Compute what is constant, leave out what does nothing, and note the type and shape of everything.

Case 1: a node that reads constants alone is computed now, such as the first resampler layer's queries. Not where the
result would be larger than `largest_bytes`, nor larger than four times what it was made of.
Case 2: Identity, Cast to the type that is there, Transpose in order, Reshape or Expand to the shape that is there.
Case 3: Reshape of a Reshape that no one else reads.
Case 4: Constant nodes become initializers.
Case 5: Split of the first axis into its single rows and Concat of all of them along the second, as the latents of two
cameras are put behind each other -> one Reshape.

Common subexpressions are not merged: after quantization each MatMul needs a Q/DQ pair of its own.

Requires: no quantizers.
Ensures: no node reads constants alone, within the sizes above, and none does nothing.
"""

from __future__ import annotations

import logging
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import IdentityEliminationPass, LiftConstantsToInitializersPass, ShapeInferencePass

from rfedge.export.passes.graph_pass import GraphPass
from rfedge.export.passes.graph_queries import (
    add_constant,
    constant_array,
    drop_unread,
    input_of,
    is_constant,
    named_shape,
    only_reader,
    parent,
    replace_node,
    static_shape,
    tensor_of,
)

# The queries of the released resampler are 256 KiB; a folded causal bias or a rotary table is less.
_LARGEST_BYTES: Final = 8 << 20
# Random numbers differ from call to call, and a quantizer's constants are the quantizer's business.
_NEVER_COMPUTED: Final = ("RandomNormal", "RandomUniform", "Bernoulli", "QuantizeLinear", "DequantizeLinear")


class Slim(GraphPass):
    """Constant folding, no-op removal, shape inference."""

    name = "slim"

    def __init__(self, *, largest_bytes: int = _LARGEST_BYTES) -> None:
        super().__init__()
        self.largest_bytes = largest_bytes

    def rewrite(self, model: ir.Model) -> list[str]:
        graph, nodes = model.graph, {node: f"{node.name} ({node.op_type})" for node in model.graph}
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        IdentityEliminationPass()(model)
        left = set(graph)
        changes = [f"{text} does nothing" for node, text in nodes.items() if node not in left]
        infer_shapes(model)
        for node in list(graph):  # in topological order, so that chains fold in one go
            if self._foldable(node):
                _compute(model, node)
                changes.append(f"{nodes[node]} computed")
        for node in list(graph):
            # Of two Reshapes the first goes before the second is asked whether it still does anything.
            while (first := _hidden_reshape(node)) is not None:
                node.replace_input_with(0, first.inputs[0])
                graph.remove(first, safe=True)
                changes.append(f"{nodes[first]} is hidden by {node.name}")
            if (split := _joined_rows(node)) is not None:
                shape = add_constant(graph, f"{node.name}/shape", np.array(static_shape(node.outputs[0]), np.int64))
                replace_node(node, ir.node("Reshape", [split.inputs[0], shape], name=str(node.name)))
                graph.remove(split, safe=True)
                changes.append(f"{nodes[node]} and {nodes[split]} become a Reshape")
                continue
            if _does_nothing(node):
                node.outputs[0].replace_all_uses_with(input_of(node, 0))
                graph.remove(node, safe=True)
                changes.append(f"{nodes[node]} does nothing")
        drop_unread(graph, *graph.initializers.values())
        return changes

    def is_left(self, node: ir.Node) -> bool:
        return self._foldable(node) or _does_nothing(node) or (_hidden_reshape(node) or _joined_rows(node)) is not None

    def _foldable(self, node: ir.Node) -> bool:
        inputs = [value for value in node.inputs if value is not None]
        if node.domain or node.op_type in _NEVER_COMPUTED or not inputs or not all(map(is_constant, inputs)):
            return False
        if any(output.is_graph_output() for output in node.outputs) or len([o for o in node.outputs if o.uses()]) != 1:
            return False
        sizes = [value.const_value.nbytes for value in inputs if value.const_value is not None]
        shape, dtype = static_shape(node.outputs[0]), node.outputs[0].dtype
        if shape is None or dtype is None or not node.outputs[0].uses():
            return False
        return int(np.prod(shape)) * dtype.itemsize <= min(self.largest_bytes, max(4 * sum(sizes), 4096))


def infer_shapes(model: ir.Model) -> None:
    """Note types and shapes on all values; a graph that ONNX cannot infer keeps what it has."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it reports contributed operators, whose shapes it leaves alone
    try:
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    finally:
        logger.setLevel(level)


def _compute(model: ir.Model, node: ir.Node) -> None:
    graph = model.graph
    arrays = {str(value.name): tensor_of(value).numpy() for value in node.inputs if value is not None}
    outputs = [onnx.ValueInfoProto(name=str(node.outputs[0].name))]
    inputs = [onnx.ValueInfoProto(name=name) for name in arrays]
    opsets = [onnx.OperatorSetIdProto(domain=domain, version=version) for domain, version in graph.opset_imports.items()]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph([ir.to_proto(node)], "constant", inputs, outputs), opset_imports=opsets
    )
    result = next(iter(ReferenceEvaluator(proto).run(None, arrays)))
    value = add_constant(graph, f"{node.outputs[0].name}/constant", np.asarray(result))
    node.outputs[0].replace_all_uses_with(value)
    graph.remove(node, safe=True)


def _does_nothing(node: ir.Node) -> bool:
    """Case 2; a node between an input and an output of the graph stays, because both names are the caller's."""
    if node.domain or node.outputs[0].is_graph_output() or node.inputs[0] is None:
        return False
    source, result = node.inputs[0], node.outputs[0]
    if node.op_type == "Cast":
        return source.dtype is not None and source.dtype == node.attributes.get_int("to", 0)
    if node.op_type == "Transpose":
        order = node.attributes.get_ints("perm", [])
        return bool(order) and list(order) == sorted(order)
    if node.op_type in ("Reshape", "Expand"):
        shape = named_shape(source)
        return shape is not None and shape == named_shape(result)
    return False


def _hidden_reshape(node: ir.Node) -> ir.Node | None:
    """Case 3: the first of two Reshapes; the second must say its shape in full (0 would copy from the first)."""
    if node.op_type != "Reshape" or node.domain:
        return None
    first = parent(node, 0, "Reshape")
    shape = constant_array(node.inputs[1])
    if first is None or shape is None or only_reader(first.outputs[0]) is not node or (shape == 0).any():
        return None
    return first


def _joined_rows(node: ir.Node) -> ir.Node | None:
    """Case 5: the Split of which a Concat joins all rows in order."""
    if node.op_type != "Concat" or node.domain or node.attributes.get_int("axis", 0) != 1:
        return None
    split = parent(node, 0, "Split")
    if split is None or split.attributes.get_int("axis", 0) != 0 or list(node.inputs) != list(split.outputs):
        return None
    rows, shape = static_shape(split.inputs[0]), static_shape(node.outputs[0])
    alone = all(only_reader(output) is node for output in split.outputs)
    return split if alone and rows is not None and shape is not None and rows[0] == len(split.outputs) else None
