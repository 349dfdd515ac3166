"""Write rounded MatMuls into a graph: a Q/DQ pair of its own for each, int8 weights, biases that make up for the rest.

ONNX Runtime fuses `x -> Q -> DQ -> MatMul` into an integer kernel only while the Q has this one reader. Where a tensor
feeds several MatMuls (the latents feed the keys and values of every cross-attention layer) a shared pair would leave
those MatMuls silently in fp32; where it also feeds a float operator, that would needlessly read rounded numbers. The
session must keep equal pairs apart, so CommonSubexpressionElimination is off (`rfedge.bundle.int8_kernels`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from rfedge.arrays import Float32, Int8
from rfedge.export.int8.balance import Balance
from rfedge.export.int8.matmuls import MatMul
from rfedge.export.int8.rounding import Rounded
from rfedge.export.passes.graph_queries import (
    add_computed,
    add_constant,
    array_of,
    constant_array,
    drop_unread,
    input_of,
    only_reader,
    replace_node,
    tensor_of,
)


def read_weight(value: ir.Value, *, is_transposed: bool) -> Float32:
    """Return a weight as (inputs, outputs); this is where it is read from disk."""
    weight = tensor_of(value).numpy()
    return weight.T if is_transposed else weight


def apply_balance(graph: ir.Graph, value: ir.Value, balance: Balance) -> ir.Value:
    """Change what comes before the MatMuls that read `value`, and return what the rounded ones must read.

    After this, readers of `value` itself receive (value - centre) / scale if the balance is absorbed, value / scale else.
    """
    if balance.gain is not None and (balance.is_absorbed or not (balance.scale == 1).all()):
        value = _rewrite_gain(graph, balance.gain, balance)
    if balance.is_absorbed or not balance.centre.any():
        return value
    centre = add_constant(graph, f"{value.name}/centre", balance.centre / balance.scale)
    node = ir.node("Sub", [value, centre], name=f"{value.name}/centred", num_outputs=1)
    output = node.outputs[0]
    output.name, output.type, output.shape = f"{value.name}_centred", value.type, value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        node.metadata_props.update(producer.metadata_props)
        graph.insert_after(producer, node)
    return output


def _rewrite_gain(graph: ir.Graph, node: ir.Node, balance: Balance) -> ir.Value:
    scale = balance.scale
    inputs = list(node.inputs)
    index = next(
        position
        for position in (1, 0)
        if (array := constant_array(inputs[position])) is not None and array.shape == scale.shape
    )
    inputs[index] = add_constant(graph, f"{node.name}/gain", (array_of(inputs[index]) / scale).astype(np.float32))
    if balance.is_absorbed:
        bias = array_of(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else np.zeros_like(scale)
        inputs = [
            *inputs[:2],
            add_constant(graph, f"{node.name}/bias", ((bias - balance.centre) / scale).astype(np.float32)),
        ]
    new = ir.node(node.op_type, inputs, dict(node.attributes), name=node.name, num_outputs=len(node.outputs))
    replaced = node.inputs
    replace_node(node, new)
    drop_unread(graph, *replaced)
    return new.outputs[0]


def rewrite_float_reader(graph: ir.Graph, node: ir.Node, balance: Balance) -> None:
    """Let a MatMul that stays in float give the same output although its input was balanced."""
    weight_value = input_of(node, 1)
    transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
    weight = read_weight(weight_value, is_transposed=transposed)
    bias = balance.centre.astype(np.float64) @ weight if balance.is_absorbed else None

    def scaled() -> Float32:
        result = read_weight(weight_value, is_transposed=transposed) * balance.scale[:, None]
        return result.T if transposed else result

    shape = weight.shape[::-1] if transposed else weight.shape
    node.replace_input_with(1, add_computed(graph, f"{weight_value.name}_scaled", scaled, ir.DataType.FLOAT, shape))
    drop_unread(graph, weight_value)
    if bias is not None:
        insert_bias(graph, node, bias.astype(np.float32))


def insert_rounded(
    graph: ir.Graph,
    matmul: MatMul,
    source: ir.Value,
    rounded: Rounded,
    input_step: np.float32,
    *,
    activation_type: str,
    spill: Path | None = None,
) -> None:
    """Let `matmul` multiply the int8 form of `source` (..., channels) with int8 weights (channels, outputs).

    `activation_type` is "int8" with zero-point 0 or "uint8" with 128. Weights wait in the folder `spill`, if any.
    """
    name, node = matmul.name, matmul.node
    zero = np.asarray(np.uint8(128) if activation_type == "uint8" else np.int8(0))
    scale = add_constant(graph, f"{name}/input_scale", np.asarray(input_step, np.float32))
    zero_point = add_constant(graph, f"{name}/input_zero_point", zero)
    quantize = ir.node("QuantizeLinear", [source, scale, zero_point], name=f"{name}/quantize", num_outputs=1)
    dequantize = ir.node(
        "DequantizeLinear", [quantize.outputs[0], scale, zero_point], name=f"{name}/dequantize", num_outputs=1
    )
    weight = matmul.weight
    levels, steps = rounded
    axis = 0 if matmul.is_transposed else 1
    constants = [
        _add_levels(graph, f"{weight.name}_quantized", levels.T if matmul.is_transposed else levels, spill),
        add_constant(graph, f"{weight.name}_scale", steps),
        add_constant(graph, f"{weight.name}_zero_point", np.zeros(len(steps), np.int8)),
    ]
    weights = ir.node("DequantizeLinear", constants, {"axis": axis}, name=f"{name}/weight", num_outputs=1)
    outputs = (
        (quantize, "input_quantized", ir.DataType.UINT8 if activation_type == "uint8" else ir.DataType.INT8, source.shape),
        (dequantize, "input_dequantized", ir.DataType.FLOAT, source.shape),
        (weights, "weight_dequantized", ir.DataType.FLOAT, weight.shape),
    )
    for new, suffix, dtype, shape in outputs:
        value = new.outputs[0]
        value.name, value.type, value.shape = f"{name}/{suffix}", ir.TensorType(dtype), shape
        graph.insert_before(node, new)
    node.replace_input_with(0, dequantize.outputs[0])
    node.replace_input_with(1, weights.outputs[0])
    drop_unread(graph, weight)


def _add_levels(graph: ir.Graph, name: str, levels: Int8, spill: Path | None) -> ir.Value:
    if spill is None:
        return add_constant(graph, name, levels)
    path = spill / f"{len(list(spill.iterdir()))}.int8"
    path.write_bytes(levels.tobytes())
    shape = levels.shape
    return add_computed(graph, name, lambda: np.fromfile(path, np.int8).reshape(shape), ir.DataType.INT8, shape)


def insert_bias(graph: ir.Graph, node: ir.Node, bias: Float32) -> None:
    """Add `bias` (outputs,) to what a MatMul gives: to the bias that follows it, or by an Add of its own."""
    output = node.outputs[0]
    reader = only_reader(output)
    if reader is not None and reader.op_type == "Add" and reader.domain == "":
        index = 1 if reader.inputs[0] is output else 0
        present = constant_array(reader.inputs[index])
        if present is not None and present.shape == bias.shape:
            old = reader.inputs[index]
            reader.replace_input_with(index, add_constant(graph, f"{node.name}/bias", present + bias))
            drop_unread(graph, old)
            return
    add = ir.node("Add", [output, add_constant(graph, f"{node.name}/bias", bias)], name=f"{node.name}/add", num_outputs=1)
    result = add.outputs[0]
    result.type, result.shape = output.type, output.shape
    add.metadata_props.update(node.metadata_props)
    graph.insert_after(node, add)
    for use in tuple(output.uses()):
        if use.node is not add:
            use.node.replace_input_with(use.idx, result)
    if output.is_graph_output():
        graph.outputs[list(graph.outputs).index(output)] = result
        result.name, output.name = output.name, f"{output.name}_matmul"
    else:
        result.name = f"{output.name}_corrected"
