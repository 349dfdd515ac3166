"""Query attention in int8 for CPUs: each row of activations has a scale of its own, found while the policy runs.

Everything that the cameras say passes through these MatMuls (`rfedge.export.int8.matmuls.QUERY_ATTENTION`), and one scale
for all their rows costs more accuracy than all other MatMuls together (docs/adr/0008). With one a row:

    x -> Sub centre -> Abs -> ReduceMax = r; x / r -> QuantizeLinear (1/127) -> MatMulIntegerToFloat -> Mul r -> Add bias

A tensor is quantized once, however many MatMuls read it. In the Q/DQ graph these MatMuls read the same int8 weights,
dequantized, and multiply floats (`store_rows`): neither TensorRT nor OpenVINO knows scales that are found at run time.

Requires: MatMuls with the names of those that were rounded, as `store_rows` leaves them.
Ensures: none of them is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from rfedge.arrays import Float32, Int8
from rfedge.export.int8.insert import insert_bias
from rfedge.export.int8.ranges import LEVELS
from rfedge.export.passes.drop_dead import DropDead
from rfedge.export.passes.graph_pass import GraphPass
from rfedge.export.passes.graph_queries import (
    add_constant,
    constant_array,
    drop_unread,
    input_of,
    insert_dequantize,
    only_reader,
    parent,
)
from rfedge.export.precisions.int8_kernel import make_kernel

_SMALLEST: Final = np.finfo(np.float32).tiny  # a row of zeros is divided by this


class RowMatMul(NamedTuple):
    """A rounded MatMul whose activations get their scales at run time."""

    levels: Int8  # (inputs, outputs)
    steps: Float32  # (outputs,)
    centre: Float32  # (inputs,), subtracted from every row; the same for all readers of a tensor
    bias: Float32 | None  # (outputs,), makes up for the mean error of the weights


def store_rows(graph: ir.Graph, rows: Mapping[str, RowMatMul]) -> None:
    """Let the MatMuls named in `rows` read their int8 weights, dequantized, in place of float ones."""
    for node in [node for node in graph if node.op_type == "MatMul" and str(node.name) in rows]:
        row, weight, name = rows[str(node.name)], input_of(node, 1), str(node.name)
        constants = [add_constant(graph, f"{name}/levels", row.levels), add_constant(graph, f"{name}/steps", row.steps)]
        read = insert_dequantize(graph, node, weight, constants, name=f"{name}/weight", axis=1)
        read.name = f"{name}/dequantized"
        node.replace_input_with(1, read)
        drop_unread(graph, weight)
        if row.bias is not None:
            insert_bias(graph, node, row.bias)


class LowerRows(GraphPass):
    """Integer kernels with a scale a row."""

    name = "lower-rows"
    takes_quantized = True

    def __init__(self, rows: Mapping[str, RowMatMul]) -> None:
        super().__init__()
        self.rows = dict(rows)

    def rewrite(self, model: ir.Model) -> list[str]:
        graph = model.graph
        quantized: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        changes = []
        for node in list(graph):
            if not self.is_left(node):
                continue
            source, row = input_of(node, 0), self.rows[str(node.name)]
            if source not in quantized:
                quantized[source] = _quantize_rows(graph, node, source, row.centre)
            _replace(graph, node, *quantized[source], row)
            changes.append(f"{node.name}: int8 with a scale a row")
        if changes:
            DropDead().rewrite(model)
        return changes

    def is_left(self, node: ir.Node) -> bool:
        return node.op_type == "MatMul" and node.domain == "" and str(node.name) in self.rows


def _quantize_rows(graph: ir.Graph, reader: ir.Node, source: ir.Value, centre: Float32) -> tuple[ir.Value, ir.Value]:
    """Put the quantizer of a tensor before its first reader; return uint8 numbers and the largest magnitude of each row."""
    name, nodes, value = str(source.name), [], source

    def add(kind: str, inputs: list[ir.Value], suffix: str, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        node = ir.node(kind, inputs, name=f"{name}/{suffix}")
        node.metadata_props.update(reader.metadata_props)
        result = node.outputs[0]
        result.name, result.type = f"{name}/{suffix}", ir.TensorType(dtype)
        nodes.append(node)
        return result

    if centre.any():
        value = add("Sub", [source, add_constant(graph, f"{name}/row_centre", centre)], "row_centred")
    last_axis = add_constant(graph, "last_axis", np.array([-1], np.int64))
    largest = add("ReduceMax", [add("Abs", [value], "magnitudes"), last_axis], "largest")
    largest = add("Max", [largest, add_constant(graph, "smallest", np.array(_SMALLEST, np.float32))], "row_scale")
    unit = add("Div", [value, largest], "unit_rows")
    step = add_constant(graph, "unit_step", np.array(1.0 / LEVELS, np.float32))
    zero = add_constant(graph, "row_zero_point", np.array(128, np.uint8))
    numbers = add("QuantizeLinear", [unit, step, zero], "rows", ir.DataType.UINT8)
    for produced in nodes:
        produced.outputs[0].shape = source.shape
    if source.shape is not None:
        largest.shape = ir.Shape([*source.shape[:-1], 1])
    graph.insert_before(reader, nodes)
    return numbers, largest


def _replace(graph: ir.Graph, matmul: ir.Node, numbers: ir.Value, largest: ir.Value, row: RowMatMul) -> None:
    """Put kernel, scale and bias where a MatMul and, if it has one, the addition of its bias stand."""
    name, last = str(matmul.name), matmul
    bias = (row.centre.astype(np.float64) @ row.levels * row.steps).astype(np.float32)
    reader = only_reader(matmul.outputs[0])
    if reader is not None and reader.op_type == "Add" and reader.domain == "":
        present = constant_array(reader.inputs[1 if reader.inputs[0] is matmul.outputs[0] else 0])
        if present is not None and present.shape == bias.shape:
            last, bias = reader, (bias + present).astype(np.float32)
    old = last.outputs[0]
    dequantize = parent(matmul, 1, "DequantizeLinear")
    assert dequantize is not None, f"{name} reads stored rows"
    weight, steps = input_of(dequantize, 0), input_of(dequantize, 1)
    kernel = make_kernel(graph, name, numbers, weight, np.float32(1.0 / LEVELS), steps)
    scaled = ir.node("Mul", [kernel.outputs[0], largest], name=f"{name}/scaled")
    added = ir.node("Add", [scaled.outputs[0], add_constant(graph, f"{name}/row_bias", bias)], name=f"{name}/biased")
    for node in (kernel, scaled, added):
        node.metadata_props.update(matmul.metadata_props)
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), old.shape
    kernel.outputs[0].name, scaled.outputs[0].name = f"{name}/integers", f"{name}/scaled"
    graph.insert_after(last, [kernel, scaled, added])
    added.outputs[0].name, old.name = old.name, f"{old.name}/float"
    old.replace_all_uses_with(added.outputs[0], replace_graph_outputs=True)
    graph.remove(list(dict.fromkeys([last, matmul])), safe=True)
