"""Which nodes of a graph compute in half precision, and which form the islands of fp32 around them."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from rfedge.export.passes.graph_queries import block_of, is_constant, only_reader, parent, single_number
from rfedge.export.precisions.form_report import MatMuls

# They copy numbers; their first inputs are the numbers, of Concat all inputs.
_MOVES: Final = ("Reshape", "Transpose", "Split", "Slice", "Squeeze", "Unsqueeze", "Expand", "Flatten", "Identity", "Concat")
_ACTIVATIONS: Final = ("Gelu", "Sigmoid", "Relu")
# Between a projection and the logits: rotary positions and the scale.
_BEFORE_LOGITS: Final = ("Mul", "Add", "Sub", "Neg")


def half_nodes(graph: ir.Graph, matmuls: MatMuls) -> set[ir.Node]:
    """Return the nodes to compute in half precision.

    A node is one of them only if every float it reads is a constant or comes from one of them, MatMuls and the two
    factors of attention's second MatMul apart, which are worth a cast.
    """
    kept_blocks = {block_of(node) for node in matmuls.kept if matmuls.kept[node].startswith("keep_float")}
    logits = _logit_nodes(graph)
    half = set(matmuls.converted)
    for node in matmuls.converted:  # a weight of integers becomes half precision as it is unpacked
        if (unpacked := parent(node, 1, "DequantizeLinear")) is not None:
            half.add(unpacked)
    for node in graph:  # in topological order
        if node in half or node.domain or node in logits or (kept_blocks and block_of(node) in kept_blocks):
            continue
        if _reads_probabilities(node) or _follows(node, half):
            half.add(node)
    return half


def _floats(node: ir.Node) -> list[ir.Value]:
    values = node.inputs if node.op_type in ("Concat", "Add", "Mul") else node.inputs[:1]
    return [value for value in values if value is not None and value.dtype == ir.DataType.FLOAT]


def _follows(node: ir.Node, half: set[ir.Node]) -> bool:
    varying = [value for value in _floats(node) if not is_constant(value)]
    if not varying or not all(value.producer() in half for value in varying):
        return False
    if node.op_type in _MOVES or node.op_type in _ACTIVATIONS:
        return True
    constants = [value for value in _floats(node) if is_constant(value)]
    if node.op_type == "Add":  # a bias; an Add of two results is the residual stream, one of a matrix the positions
        return len(constants) == 1 and constants[0].shape is not None and len(constants[0].shape) == 1
    if node.op_type == "Mul":  # gated activations; of numbers only QuickGELU's 1.702, any other is a scale or a gate
        return not constants or (single_number(constants[0]) is not None and _reader_is(node, "Sigmoid"))
    return False


def _reader_is(node: ir.Node, op_type: str) -> bool:
    reader = only_reader(node.outputs[0])
    return reader is not None and reader.op_type == op_type


def _reads_probabilities(node: ir.Node) -> bool:
    """Whether this is attention's second MatMul, softmax(...) V."""
    if node.op_type != "MatMul" or any(is_constant(value) for value in node.inputs):
        return False
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    return producer is not None and producer.op_type == "Softmax"


def _logit_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Return attention's first MatMuls and the arithmetic, not the moves, between the projections and them."""
    found: set[ir.Node] = set()
    for node in graph:
        if node.op_type != "MatMul" or any(is_constant(value) for value in node.inputs) or _reads_probabilities(node):
            continue
        found.add(node)
        waiting = [value.producer() for value in node.inputs if value is not None]
        seen: set[ir.Node] = set()
        while waiting:
            producer = waiting.pop()
            if producer is None or producer in seen or producer.op_type not in (*_MOVES, *_BEFORE_LOGITS):
                continue
            seen.add(producer)
            if producer.op_type == "Add" and any(is_constant(value) for value in producer.inputs):
                continue  # a projection's bias
            if producer.op_type in _BEFORE_LOGITS:
                found.add(producer)
            waiting += [value.producer() for value in producer.inputs if value is not None]
    return found
