"""A graph for ONNX Runtime on a CPU that rounds where an engine does, and the largest numbers that fp16 has to hold.

Every operator's result is rounded to fp16, also inside what TensorRT fuses and keeps in fp32, so the emulation errs on the
coarse side. An int8 MatMul runs on integer kernels; its sums are rounded as the engine writes them, once before the scales
of the columns and once after. Not emulated: in which order and in how many bits a GPU adds up, which is unknown here, and
the recurrence inside an LSTM, of which only weights and results are rounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from rfedge.export.passes.drop_dead import DropDead
from rfedge.export.passes.graph_files import read_graph, write_graph
from rfedge.export.passes.graph_queries import add_constant, array_of, constant_array, input_of, is_constant
from rfedge.export.precisions.cpu_int8 import LowerInt8
from rfedge.export.precisions.runs_here import MOVES, round_to_half
from rfedge.export.tensorrt.engine_form import HIDDEN, Int8MatMul, int8_matmuls, to_engine_form

_FLOAT: Final = ir.DataType.FLOAT
_HALF: Final = ir.DataType.FLOAT16
# The output that holds the largest magnitudes.
LARGEST_NAME: Final = "largest_in_fp16"


def write_emulation(source: Path, islands: Iterable[str], target: Path, *, observed: bool = False) -> tuple[str, ...]:
    """Write to `target` what an engine of the graph at `source` computes, in fp32 with roundings to fp16 but for `islands`.

    An observed graph does not round, for an infinity would hide by how much fp16 is exceeded; its output `LARGEST_NAME`,
    float32 (nodes,), is the largest magnitude of each node's results. Their names are returned, of int8 MatMuls two.
    """
    model = read_graph(source)
    to_engine_form(model, frozenset(islands))
    graph = model.graph
    for matmul in int8_matmuls(graph):
        if matmul.node.outputs[0].dtype == _HALF:
            _scale_columns_after(graph, matmul)
    magnitudes = list(_observe(graph)) if observed else []
    round_to_half(graph, rounds=not observed)
    if magnitudes:
        largest = ir.node("Concat", [value for _, value in magnitudes], attributes={"axis": 0}, name=LARGEST_NAME)
        _describe(largest, LARGEST_NAME, (len(magnitudes),))
        graph.append(largest)
        graph.outputs.append(largest.outputs[0])
    LowerInt8()(model)
    DropDead().rewrite(model)
    write_graph(model, target)
    return tuple(name for name, _ in magnitudes)


def _scale_columns_after(graph: ir.Graph, matmul: Int8MatMul) -> None:
    """Let the MatMul give its sums times the activation's scale, and a Mul of its own scale the columns."""
    node, quantize, dequantize, weight = matmul
    columns, whole = input_of(weight, 1), quantize.inputs[1]
    power = _number(dequantize) / _number(quantize)  # what was taken from the columns
    weight.replace_input_with(1, add_constant(graph, f"{weight.name}/power", np.array(power, np.float32)))
    dequantize.replace_input_with(1, whole)
    for value in (weight.outputs[0], dequantize.outputs[0]):
        value.type = ir.TensorType(_FLOAT)  # integers and one scale: exact
    output = node.outputs[0]
    readers = tuple(output.uses())
    scaled = ir.node("Mul", [output, columns], name=f"{node.name}/columns")
    scaled.metadata_props.update(node.metadata_props)
    scaled.outputs[0].name, scaled.outputs[0].type, scaled.outputs[0].shape = (
        f"{output.name}/columns",
        output.type,
        output.shape,
    )
    graph.insert_after(node, scaled)
    for reader, index in readers:
        reader.replace_input_with(index, scaled.outputs[0])


def _number(node: ir.Node) -> float:
    return float(array_of(node.inputs[1], largest=1).reshape(()))


def _observe(graph: ir.Graph) -> Iterable[tuple[str, ir.Value]]:
    """Add ReduceMax(Abs(x)) for every result in fp16 that is computed and not moved; (node, its largest (1,))."""
    shape = add_constant(graph, "one_element", np.array([1], np.int64))
    for node in list(graph):
        if (
            node.op_type in MOVES
            or node.op_type in ("DequantizeLinear", "Cast")
            or all(is_constant(value) for value in node.inputs)
        ):
            continue
        for output in node.outputs:
            if output.dtype != _HALF or any(_hides(value) for value in node.inputs):
                continue
            magnitude = ir.node("Abs", [output], name=f"{output.name}/magnitude")
            _describe(magnitude, f"{output.name}/magnitude", None)
            most = ir.node("ReduceMax", [magnitude.outputs[0]], attributes={"keepdims": 0}, name=f"{output.name}/largest")
            _describe(most, f"{output.name}/largest", ())
            row = ir.node("Reshape", [most.outputs[0], shape], name=f"{output.name}/largest_row")
            _describe(row, f"{output.name}/largest_row", (1,))
            graph.insert_after(node, [magnitude, most, row])
            yield str(node.name), row.outputs[0]


def _hides(value: ir.Value | None) -> bool:
    """Whether a constant hides keys from a softmax: what is added to it says nothing about the logits."""
    array = constant_array(value)
    return array is not None and array.dtype.kind == "f" and bool((array <= HIDDEN).any())


def _describe(node: ir.Node, name: str, shape: tuple[int, ...] | None) -> None:
    value = node.outputs[0]
    value.name, value.type = name, ir.TensorType(_FLOAT)
    value.shape = None if shape is None else ir.Shape(shape)
