"""Questions about a graph that several passes ask, and the two ways in which they give it a new constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, count

import numpy as np
import onnx_ir as ir

from rfedge.arrays import Array
from rfedge.bundle.block_names import SCOPES_KEY, block_of_scopes

# Above this an array is a weight, which no pass reads while it looks around.
_SMALL = 65536


def block_of(node: ir.Node) -> str:
    """Return the PyTorch block a node came from, such as "vision.blocks.3"; "unnamed" without the exporter's note."""
    return block_of_scopes(node.metadata_props.get(SCOPES_KEY))


def is_constant(value: ir.Value | None) -> bool:
    """Whether the value is an initializer that no caller can replace."""
    return value is not None and value.const_value is not None and not value.is_graph_input() and value.producer() is None


def constant_array(value: ir.Value | None, *, largest: int = _SMALL) -> Array | None:
    """Return the array of a small constant; None for anything else."""
    if value is None or not is_constant(value):
        return None
    tensor = value.const_value
    return None if tensor is None or tensor.size > largest else tensor.numpy()


def input_of(node: ir.Node, index: int) -> ir.Value:
    """Return an input that the node has."""
    value = node.inputs[index]
    assert value is not None, f"{node.name} has an input {index}"
    return value


def tensor_of(value: ir.Value) -> ir.TensorProtocol:
    """Return the tensor of a value that is a constant, without reading it."""
    assert value.const_value is not None, f"{value.name} is a constant"
    return value.const_value


def array_of(value: ir.Value | None, *, largest: int = _SMALL) -> Array:
    """Return the array of what is a small constant."""
    array = constant_array(value, largest=largest)
    assert array is not None, f"{value and value.name} is a constant"
    return array


def single_number(value: ir.Value | None) -> float | None:
    """Return the number in a floating-point constant of one element; None for anything else."""
    array = constant_array(value, largest=1)
    return float(array.reshape(())) if array is not None and array.size == 1 and array.dtype.kind == "f" else None


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape when it is known and fixed."""
    if value is None or value.shape is None or not all(isinstance(size, int) for size in value.shape):
        return None
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]


def named_shape(value: ir.Value | None) -> tuple[int | str, ...] | None:
    """Return the shape, free axes by their names; axes of one name have one size. None where an axis has neither."""
    if value is None or value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else size.value for size in value.shape]
    return None if any(size is None for size in sizes) else tuple(size for size in sizes if size is not None)


def tensor_shape(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """Return the shape of a constant, which has no free axes."""
    return tuple(int(str(size)) for size in tensor.shape)


def only_reader(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads the value, once; None where there are more or it leaves the graph."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def parent(node: ir.Node, index: int, *op_types: str) -> ir.Node | None:
    """Return the producer of input `index` if it is one of `op_types` of standard ONNX; None otherwise."""
    value = node.inputs[index] if index < len(node.inputs) else None
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type in op_types and producer.domain == "" else None


def is_weight_matmul(node: ir.Node) -> bool:
    """Whether the node is a MatMul or Gemm of a varying first factor and a constant matrix."""
    return (
        node.op_type in ("MatMul", "Gemm")
        and node.domain == ""
        and not is_constant(node.inputs[0])
        and is_constant(node.inputs[1])
        and len(tensor_of(input_of(node, 1)).shape) == 2
    )


def add_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Register a small array as a new initializer; a taken name gets a number."""
    return _register(graph, ir.tensor(np.asarray(array, order="C"), name=_free_name(graph, name)))


def add_computed(
    graph: ir.Graph, name: str, compute: Callable[[], Array], dtype: ir.DataType, shape: tuple[int, ...]
) -> ir.Value:
    """Register a new initializer whose array is computed when it is written, not now."""
    name = _free_name(graph, name)
    tensor = ir.LazyTensor(
        lambda: ir.tensor(np.asarray(compute(), dtype=dtype.numpy(), order="C"), dtype=dtype),
        dtype=dtype,
        shape=ir.Shape(shape),
        name=name,
    )
    return _register(graph, tensor)


def _register(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=tensor.name, shape=ir.Shape(tensor_shape(tensor)), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _free_name(graph: ir.Graph, name: str) -> str:
    names = chain([name], (f"{name}.{number}" for number in count(1)))
    return next(free for free in names if free not in graph.initializers)


def drop_unread(graph: ir.Graph, *values: ir.Value | None) -> None:
    """Remove those of these initializers that nobody reads any more."""
    for value in values:
        if value is None or value.uses() or value.is_graph_output():
            continue
        if graph.initializers.get(str(value.name)) is value:
            del graph.initializers[str(value.name)]


def insert_dequantize(
    graph: ir.Graph, reader: ir.Node, weight: ir.Value, constants: Sequence[ir.Value], *, name: str, **attributes: int
) -> ir.Value:
    """Put DequantizeLinear(constants) before the node that reads a float weight; return what it shall read instead."""
    node = ir.node("DequantizeLinear", constants, attributes=attributes, name=name)
    node.metadata_props.update(reader.metadata_props)
    value = node.outputs[0]
    value.name, value.type, value.shape = f"{weight.name}/dequantized", ir.TensorType(ir.DataType.FLOAT), weight.shape
    graph.insert_before(reader, node)
    return value


def replace_node(old: ir.Node, new: ir.Node) -> None:
    """Put `new` where `old` stands; its outputs take the names, readers and origin of the old ones."""
    graph = old.graph
    assert isinstance(graph, ir.Graph), f"node {old.name} belongs to no graph"
    new.metadata_props.update(old.metadata_props)
    for before, after in zip(old.outputs, new.outputs, strict=True):
        after.name, after.type, after.shape = before.name, before.type, before.shape
        before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.insert_before(old, new)
    graph.remove(old, safe=True)
