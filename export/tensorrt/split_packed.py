"""Give each part of a packed int8 MatMul (q|k|v in one matrix) a MatMul of its own.

TensorRT for RTX 1.7 takes `int8 MatMul -> Add bias -> Split` apart itself, but in doing so dequantizes the packed weight
while the engine runs and multiplies in floats: seen in the vision blocks of playtable-small with batch 2, and without a bias
where queries and keys are normalised in their heads. Three MatMuls that read the same int8 tensor stay int8, and the
builder may still run them as one kernel.

Requires: symmetric Q/DQ, one scale per output column or one for all.
Ensures: the same numbers bit for bit, because every output column is computed from its own weight column alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["split_packed_matmuls"]


@dataclass(frozen=True, slots=True)
class _Packed:
    """MatMul -> Add (where there is a bias) -> Split, and the DequantizeLinear of the weight."""

    matmul: onnx.NodeProto
    weight: onnx.NodeProto
    bias: onnx.NodeProto | None
    split: onnx.NodeProto

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """What the parts replace, the Split apart."""
        return [self.weight, self.matmul, *(() if self.bias is None else (self.bias,))]

    @property
    def constants(self) -> list[str]:
        """Names of the weight, its scale and zero-point, and the bias."""
        return [*self.weight.input, *(() if self.bias is None else (self.bias.input[1],))]


def split_packed_matmuls(model: onnx.ModelProto, folder: Path) -> int:
    """Rewrite `model` in place and return the number of packed MatMuls taken apart.

    Args:
        model: graph with Q/DQ pairs.
        folder: where the graph's file is, for weights beside it.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found = list(_packed_matmuls(graph, tensors))
    replaced: dict[str, list[onnx.NodeProto]] = {}
    for packed in found:
        replaced[packed.split.output[0]] = _take_apart(packed, graph, tensors, folder)
    gone = {node.output[0] for packed in found for node in packed.nodes}
    nodes = [part for node in graph.node if node.output[0] not in gone for part in replaced.get(node.output[0], [node])]
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    for packed in found:
        for name in packed.constants:
            if name not in read and name in tensors:
                graph.initializer.remove(tensors.pop(name))
    return len(found)


def _packed_matmuls(graph: onnx.GraphProto, tensors: dict[str, onnx.TensorProto]) -> Iterator[_Packed]:
    producers = {name: node for node in graph.node for name in node.output}
    num_readers: dict[str, int] = {}
    for name in [*(name for node in graph.node for name in node.input), *(value.name for value in graph.output)]:
        num_readers[name] = num_readers.get(name, 0) + 1
    for split in [node for node in graph.node if node.op_type == "Split"]:
        last = producers.get(split.input[0])
        bias = last if last is not None and last.op_type == "Add" else None
        matmul = last if bias is None else producers.get(bias.input[0])
        if matmul is None or matmul.op_type != "MatMul":
            continue
        weight, activation = producers.get(matmul.input[1]), producers.get(matmul.input[0])
        if weight is None or activation is None:
            continue
        packed = _Packed(matmul, weight, bias, split)
        if (
            weight.op_type == activation.op_type == "DequantizeLinear"
            and all(name in tensors for name in packed.constants)
            and len(tensors[weight.input[0]].dims) == 2
            and (bias is None or len(tensors[bias.input[1]].dims) == 1)
            and all(num_readers[node.output[0]] == 1 for node in packed.nodes)
            and _part_sizes(split, tensors, tensors[weight.input[0]].dims[1]) is not None
        ):
            yield packed


def _part_sizes(split: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], width: int) -> list[int] | None:
    """Return the widths of the parts of a split along the last axis; None where it is not one."""
    attributes = {attribute.name: attribute.i for attribute in split.attribute}
    if attributes.get("axis", 0) not in (-1, 2):  # tokens are (batch, token, width)
        return None
    if len(split.input) > 1:
        sizes: list[int] | None = None
        if split.input[1] in tensors:
            sizes = numpy_helper.to_array(tensors[split.input[1]]).tolist()
        return sizes
    num_parts = len(split.output)
    return [width // num_parts] * num_parts if width % num_parts == 0 else None


def _take_apart(
    packed: _Packed, graph: onnx.GraphProto, tensors: dict[str, onnx.TensorProto], folder: Path
) -> list[onnx.NodeProto]:
    sizes = _part_sizes(packed.split, tensors, tensors[packed.weight.input[0]].dims[1])
    assert sizes is not None, "checked by _packed_matmuls"
    names = packed.constants
    arrays = [numpy_helper.to_array(tensors[name], base_dir=str(folder)) for name in names]
    nodes = []
    starts = np.cumsum([0, *sizes])
    for index, output in enumerate(packed.split.output):
        prefix = f"{packed.matmul.name}/{index}"
        part = slice(int(starts[index]), int(starts[index + 1]))
        inputs = []
        for name, array in zip(names, arrays, strict=True):
            piece = array[..., part] if array.ndim else array  # a scale for all columns has no axis
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(piece), f"{name}/{index}"))
            inputs.append(f"{name}/{index}")
        weight_inputs = inputs[: len(packed.weight.input)]
        result = output if packed.bias is None else f"{prefix}/out"
        made = [
            helper.make_node("DequantizeLinear", weight_inputs, [f"{prefix}/weight"], name=f"{packed.weight.name}/{index}"),
            helper.make_node("MatMul", [packed.matmul.input[0], f"{prefix}/weight"], [result], name=prefix),
        ]
        if packed.bias is not None:
            made.append(helper.make_node("Add", [result, inputs[-1]], [output], name=f"{packed.bias.name}/{index}"))
        for node, original in zip(made, packed.nodes, strict=True):
            node.attribute.extend(original.attribute)
            node.metadata_props.extend(original.metadata_props)
        nodes += made
    return nodes
