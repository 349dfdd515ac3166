"""Write attention as the one operator that ONNX has for it since opset 23, on the tokens as the projections leave them.

MatMul(Softmax(q kT scale + bias), v), with heads cut out of the last axis before and put back after it
-> Attention(q, k, v, bias), (batch, tokens, heads * width) each. ONNX Runtime's CPU kernel reads the heads where they lie:
six Transposes and Reshapes go, and the numbers are those of the long form, bit for bit where the scale is a power of two
(heads of 16, 64 or 256 channels); else q is scaled in the MatMul, one rounding elsewhere.

Case 1: a factor is a Transpose of a Reshape of tokens.
Case 2: a factor is a constant in heads, such as the queries of the first resampler layer: it is laid out as tokens.
Scales may stand at q, at k or at both. A bias (heads, tokens, keys) gets its first axis once, however many layers read it;
one (batch, 1, 1, keys) gets a row for each token, as ONNX Runtime wants it, where their number is known.

Requires: ONNX Runtime from 1.24 on, for which alone this form is written.
Ensures: no such attention is left; the graph is of opset 23.

Source: onnx, Attention-23.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from rfedge.export.passes.drop_dead import DropDead
from rfedge.export.passes.graph_pass import GraphPass
from rfedge.export.passes.graph_queries import (
    add_constant,
    array_of,
    is_constant,
    only_reader,
    parent,
    replace_node,
    single_number,
    static_shape,
)

OPSET: Final = 23
_HEADS_FIRST: Final = [0, 2, 1, 3]
_KEYS_LAST: Final = ([0, 1, 3, 2], [0, 2, 3, 1])  # of keys in heads, of keys as a Reshape leaves them


class _Found(NamedTuple):
    """An attention: tokens of q, k and v, or constants in heads, and the Reshape that puts its heads back."""

    q: ir.Value
    k: ir.Value
    v: ir.Value
    bias: ir.Value | None
    scale: float
    num_heads: int
    last: ir.Node


class FuseAttention(GraphPass):
    """One Attention node for each attention."""

    name = "fuse-attention"
    takes_quantized = True

    def rewrite(self, model: ir.Model) -> list[str]:
        graph = model.graph
        changes = []
        biases: dict[tuple[ir.Value, int], ir.Value] = {}
        for node in list(graph):
            found = _attention(node)
            if found is None:
                continue
            inputs = [_as_tokens(graph, value) for value in (found.q, found.k, found.v)]
            if found.bias is not None:
                num_tokens = static_shape(found.last.outputs[0])
                key = (found.bias, num_tokens[1] if num_tokens is not None and _is_of_keys(found.bias) else 0)
                if key not in biases:
                    biases[key] = _in_four_axes(graph, found.bias, node, num_rows=key[1])
                inputs.append(biases[key])
            attributes = {"q_num_heads": found.num_heads, "kv_num_heads": found.num_heads, "scale": found.scale}
            name = str(node.name)
            replace_node(found.last, ir.node("Attention", inputs, attributes, name=name))
            changes.append(f"{name}: attention of {found.num_heads} heads")
        if changes:
            graph.opset_imports[""] = model.opset_imports[""] = OPSET
            DropDead().rewrite(model)
        return changes

    def is_left(self, node: ir.Node) -> bool:
        return _attention(node) is not None


def _attention(node: ir.Node) -> _Found | None:
    """Match an attention by the MatMul of its weights and values."""
    if node.op_type != "MatMul" or node.domain:
        return None
    softmax, last = parent(node, 0, "Softmax"), _put_back(node)
    if softmax is None or last is None or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    logits, bias = parent(softmax, 0, "MatMul", "Add"), None
    if logits is not None and logits.op_type == "Add":
        place = next((index for index in (0, 1) if parent(logits, index, "MatMul") is not None), None)
        bias = None if place is None else logits.inputs[1 - place]
        if place is None or bias is None or bias.shape is None:
            return None
        of_keys = _is_of_keys(bias) and static_shape(last.outputs[0]) is not None  # its rows are counted now
        if len(bias.shape) != 3 and not of_keys:
            return None
        logits = parent(logits, place, "MatMul")
    if logits is None or any(only_reader(step.outputs[0]) is None for step in (softmax, logits)):
        return None
    (heads_q, q_scale), (keys, k_scale) = map(_unscaled, logits.inputs)
    q, k, v = _tokens(heads_q), _keys(keys), _tokens(node.inputs[1])
    num_heads = _num_heads(heads_q)
    if q is None or k is None or v is None or num_heads is None or num_heads != _num_heads(node.inputs[1]):
        return None
    if static_shape(last.inputs[1]) is None:
        return None
    return _Found(q, k, v, bias, q_scale * k_scale, num_heads, last)


def _put_back(node: ir.Node) -> ir.Node | None:
    """Return the Reshape behind the Transpose that puts the heads beside each other again."""
    transpose = only_reader(node.outputs[0])
    if transpose is None or not _transposes(transpose, _HEADS_FIRST):
        return None
    reshape = only_reader(transpose.outputs[0])
    if reshape is None or reshape.op_type != "Reshape" or reshape.domain or reshape.outputs[0].shape is None:
        return None
    return reshape if len(reshape.outputs[0].shape) == 3 else None


def _transposes(node: ir.Node, order: list[int]) -> bool:
    return node.op_type == "Transpose" and node.domain == "" and list(node.attributes.get_ints("perm", [])) == order


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """Return what a Mul by one number scales, and the number; the value itself and 1 without one."""
    scale = value.producer() if value is not None else None
    if scale is None or scale.op_type != "Mul" or scale.domain:
        return value, 1.0
    for place in (0, 1):
        number = single_number(scale.inputs[place])
        if number is not None:
            return scale.inputs[1 - place], number
    return value, 1.0


def _keys(value: ir.Value | None) -> ir.Value | None:
    """Return the tokens behind keys whose last two axes are exchanged."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Transpose":
        return None
    in_heads, as_reshaped = _KEYS_LAST
    if _transposes(node, in_heads):
        return _tokens(node.inputs[0])
    return _reshaped(node.inputs[0]) if _transposes(node, as_reshaped) else None


def _tokens(value: ir.Value | None) -> ir.Value | None:
    """Return the tokens (batch, tokens, channels) that were cut into heads, or the constant itself."""
    if _constant_in_heads(value) is not None:
        return value
    node = value.producer() if value is not None else None
    return _reshaped(node.inputs[0]) if node is not None and _transposes(node, _HEADS_FIRST) else None


def _reshaped(value: ir.Value | None) -> ir.Value | None:
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Reshape" or node.domain:
        return None
    source = node.inputs[0]
    return source if source is not None and source.shape is not None and len(source.shape) == 3 else None


def _num_heads(value: ir.Value | None) -> int | None:
    """Return the size of axis 1 of a factor in heads."""
    shape = None if value is None else value.shape
    return int(shape[1]) if shape is not None and len(shape) == 4 and isinstance(shape[1], int) else None


def _constant_in_heads(value: ir.Value | None) -> ir.Value | None:
    """Return the initializer behind a factor in heads: the factor, or what a Cast from a smaller type reads."""
    if value is None or value.shape is None or len(value.shape) != 4:
        return None
    producer = value.producer()
    stored = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else value
    return stored if is_constant(stored) else None


def _as_tokens(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Return the value, or a constant in heads laid out as tokens, in the type that it computes in."""
    stored = _constant_in_heads(value)
    if stored is None:
        return value
    array = array_of(stored, largest=1 << 24)
    batch, heads, tokens, width = array.shape
    laid_out = np.ascontiguousarray(array.transpose(0, 2, 1, 3)).reshape(batch, tokens, heads * width)
    constant = add_constant(graph, f"{stored.name}/tokens", laid_out)
    cast = value.producer()
    if cast is None:
        return constant
    widened = ir.node("Cast", [constant], dict(cast.attributes), name=f"{cast.name}/tokens")
    widened.outputs[0].name, widened.outputs[0].type = f"{value.name}/tokens", value.type
    widened.outputs[0].shape = ir.Shape(laid_out.shape)
    widened.metadata_props.update(cast.metadata_props)
    graph.insert_after(cast, widened)
    return widened.outputs[0]


def _is_of_keys(bias: ir.Value) -> bool:
    """Whether a bias is (batch, 1, 1, keys), the same for all heads and tokens."""
    shape = static_shape(bias)
    return shape is not None and len(shape) == 4 and shape[1:3] == (1, 1)


def _in_four_axes(graph: ir.Graph, bias: ir.Value, reader: ir.Node, *, num_rows: int) -> ir.Value:
    """Give (heads, tokens, keys) a first axis of size 1, and (batch, 1, 1, keys) `num_rows` rows."""
    assert bias.shape is not None, f"{bias.name} has three or four axes"
    shape = [bias.shape[0], 1, num_rows, bias.shape[3]] if num_rows else [1, *bias.shape]
    argument = np.array(shape if num_rows else [0], np.int64)
    constant = add_constant(graph, f"{bias.name}/rows" if num_rows else "batch_axis", argument)
    name = f"{bias.name}/{constant.name if num_rows else 'batch'}"
    node = ir.node("Expand" if num_rows else "Unsqueeze", [bias, constant], name=name)
    output = node.outputs[0]
    output.name, output.type, output.shape = name, bias.type, ir.Shape(shape)
    producer = bias.producer()
    node.metadata_props.update((producer or reader).metadata_props)
    graph.insert_before(graph[0], node) if producer is None else graph.insert_after(producer, node)
    return output
