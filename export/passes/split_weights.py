"""Give each part of a packed projection (q|k|v, or k|v, in one matrix) a MatMul of its own, instead of splitting its output.

MatMul (and its bias) -> Split along the last axis becomes one MatMul, with its part of the bias, for each part; the numbers
are the same. After quantization each part has its own Q/DQ pair with the scale of the whole. TensorRT for RTX 1.7
dequantizes a packed int8 weight while the engine runs and multiplies floats; MatMuls that read one int8 tensor stay int8.

Requires: no quantizers.
Ensures: no Split of a packed projection is left.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from rfedge.export.passes.graph_pass import MatchPass
from rfedge.export.passes.graph_queries import (
    add_computed,
    constant_array,
    drop_unread,
    input_of,
    is_constant,
    is_weight_matmul,
    only_reader,
    parent,
    tensor_of,
    tensor_shape,
)


class _Packed(NamedTuple):
    """MatMul -> (Add ->) Split, the bias, and the widths of the parts."""

    matmul: ir.Node
    add: ir.Node | None
    bias: ir.Value | None
    sizes: tuple[int, ...]


class SplitWeights(MatchPass[_Packed]):
    """One MatMul for each part of a packed projection."""

    name = "split-weights"
    left = "splits a packed projection"

    def match(self, node: ir.Node) -> _Packed | None:
        if node.op_type != "Split" or node.domain or any(output.is_graph_output() for output in node.outputs):
            return None
        before, bias = parent(node, 0, "Add", "MatMul"), None
        add = before if before is not None and before.op_type == "Add" else None
        matmul = before
        if add is not None:
            place = next((index for index in (0, 1) if parent(add, index, "MatMul") is not None), None)
            if place is None:
                return None
            matmul, bias = parent(add, place, "MatMul"), add.inputs[1 - place]
        if matmul is None or not is_weight_matmul(matmul):
            return None
        if any(only_reader(part.outputs[0]) is None for part in (matmul, add) if part is not None):
            return None
        width, result = tensor_shape(tensor_of(input_of(matmul, 1)))[1], node.inputs[0]
        if bias is not None and (not is_constant(bias) or tensor_shape(tensor_of(bias)) != (width,)):
            return None
        rank = None if result is None or result.shape is None else len(result.shape)
        if node.attributes.get_int("axis", 0) not in (-1, *(() if rank is None else (rank - 1,))):
            return None
        sizes = _sizes(node, width)
        return None if sizes is None else _Packed(matmul, add, bias, sizes)

    def replace(self, graph: ir.Graph, node: ir.Node, found: _Packed) -> str:
        _take_apart(graph, node, found)
        return f"{found.matmul.name}: {len(found.sizes)} MatMuls"

    def rewrite(self, model: ir.Model) -> list[str]:
        changes = super().rewrite(model)
        drop_unread(model.graph, *model.graph.initializers.values())
        return changes


def _sizes(split: ir.Node, width: int) -> tuple[int, ...] | None:
    if len(split.inputs) > 1 and split.inputs[1] is not None:
        array = constant_array(split.inputs[1])
        return None if array is None else tuple(int(size) for size in array)
    count = len(split.outputs)
    return (width // count,) * count if width % count == 0 else None


def _take_apart(graph: ir.Graph, split: ir.Node, packed: _Packed) -> None:
    matmul, weight = packed.matmul, input_of(packed.matmul, 1)
    starts = np.cumsum([0, *packed.sizes])
    for index, output in enumerate(split.outputs):
        columns = slice(int(starts[index]), int(starts[index + 1]))
        part = ir.node("MatMul", [matmul.inputs[0], _columns(graph, weight, columns, index)], name=f"{matmul.name}/{index}")
        made, last = [part], part
        if packed.bias is not None:
            assert packed.add is not None, f"the bias of {matmul.name} is added"
            bias = _columns(graph, packed.bias, columns, index)
            last = ir.node("Add", [part.outputs[0], bias], name=f"{packed.add.name}/{index}")
            made.append(last)
            part.outputs[0].name, part.outputs[0].type = f"{output.name}/matmul", output.type
            part.outputs[0].shape = output.shape
        for node in made:
            node.metadata_props.update(matmul.metadata_props)
        result, name = last.outputs[0], output.name
        output.name = f"{name}/split"
        result.name, result.type, result.shape = name, output.type, output.shape
        output.replace_all_uses_with(result)
        graph.insert_before(split, made)
    graph.remove([node for node in (split, packed.add, matmul) if node is not None], safe=True)


def _columns(graph: ir.Graph, value: ir.Value, columns: slice, index: int) -> ir.Value:
    tensor = tensor_of(value)
    shape = (*tensor_shape(tensor)[:-1], columns.stop - columns.start)
    cut = lambda: np.ascontiguousarray(tensor.numpy()[..., columns])  # noqa: E731 - read when it is written
    return add_computed(graph, f"{value.name}/{index}", cut, tensor.dtype, shape)
