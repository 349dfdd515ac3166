"""fp16 and bf16 as a strongly typed graph: MatMuls in half precision, everything that is delicate in fp32.

Half precision are: MatMuls with a weight, their biases, the activation functions between two of them (GELU, QuickGELU,
SiLU), the MatMul of attention probabilities with the values, and what only moves such numbers. In fp32 stay LayerNorm
and RMSNorm, softmax and attention logits, rotary positions, gates, the residual stream, the pooling and the camera
resize. A residual stream in fp16 overflows where a language model's outliers exceed 65504, and rounds at every layer.

Inputs and outputs keep the types of the contract. Casts are written out, one per tensor and type, so that a strongly typed
TensorRT network needs no flag; no operator mixes types.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from rfedge.arrays import Array
from rfedge.errors import ExportError
from rfedge.export.passes.graph_files import read_graph, write_graph
from rfedge.export.passes.graph_queries import (
    add_computed,
    block_of,
    is_constant,
    only_reader,
    parent,
    single_number,
    tensor_of,
    tensor_shape,
)
from rfedge.export.passes.slim import infer_shapes
from rfedge.export.precisions.form_matmuls import REPAIR, FormMatMuls, choose_matmuls
from rfedge.export.precisions.runs_here import MOVES
from rfedge.jobs.progress import Count

_FLOAT: Final = ir.DataType.FLOAT
HALF_TYPES: Final = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
# They read a number of any type.
_ANY_TYPE: Final = ("Cast", "Shape")


def make_half(
    form: Literal["fp16", "bf16"],
    source: Path,
    target: Path,
    *,
    keep_float: Sequence[str] | None = None,
    on_weight: Count = lambda *_: None,
) -> list[Path]:
    """Write the fp16 or bf16 form of the fp32 graph at `source` to `target`, which may be `source`; return the files."""
    model = read_graph(source)
    infer_shapes(model)
    set_types(model, half_nodes(model.graph, choose_matmuls(model.graph, keep_float or ())), HALF_TYPES[form])
    return write_graph(model, target, on_weight=on_weight)


def set_types(model: ir.Model, half: Collection[ir.Node], dtype: ir.DataType) -> None:
    """Let the nodes `half` compute in `dtype` and all others in fp32, in place; a Cast stands where one reads another."""
    graph = model.graph
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    constants: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(graph):
        wanted = dtype if node in half else _FLOAT
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (_FLOAT, dtype) or value.dtype == wanted:
                continue
            if is_constant(value):
                if (value, wanted) not in constants:
                    constants[value, wanted] = _converted_constant(graph, value, wanted)
                node.replace_input_with(index, constants[value, wanted])
            elif node.op_type not in _ANY_TYPE:
                key = (value, wanted)
                if key not in casts:
                    casts[key] = _cast(graph, value, wanted)
                node.replace_input_with(index, casts[key])
        for output in node.outputs:
            if output.dtype in (_FLOAT, dtype) and output.dtype != wanted:
                output.type = ir.TensorType(wanted)
                if node.op_type == "Cast":
                    node.attributes["to"] = ir.AttrInt64("to", int(wanted))
    for place, output in enumerate(graph.outputs):
        if output.dtype == dtype:  # the contract says float32
            name, output.name = output.name, f"{output.name}/half"
            graph.outputs[place] = _cast(graph, output, _FLOAT)
            graph.outputs[place].name = name
    for value in dict.fromkeys(value for value, _ in constants):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[str(value.name)]


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    suffix = "fp32" if dtype == _FLOAT else "half"
    name = f"{value.name}/{suffix}"
    cast = ir.node("Cast", [value], attributes={"to": int(dtype)}, name=f"cast_{name}")
    cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].type = name, value.shape, ir.TensorType(dtype)
    producer = value.producer()
    if producer is None:  # an input of the graph
        graph.insert_before(graph[0], cast)
    else:
        cast.metadata_props.update(producer.metadata_props)
        graph.insert_after(producer, cast)
    return cast.outputs[0]


def _converted_constant(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    tensor = tensor_of(value)
    name, shape = str(value.name), tensor_shape(tensor)
    if dtype == _FLOAT:
        return add_computed(graph, f"{name}/fp32", lambda: tensor.numpy().astype(np.float32), dtype, shape)
    suffix = next(form for form, half in HALF_TYPES.items() if half == dtype)
    largest = float(ml_dtypes.finfo(dtype.numpy()).max)  # type: ignore[no-untyped-call]

    def convert() -> Array:
        array = tensor.numpy()
        with np.errstate(over="ignore"):
            converted: Array = array.astype(dtype.numpy())
        if not np.isfinite(converted).all():
            worst = float(np.abs(array).max())  # NaN wins every maximum
            expected = f"finite numbers up to {largest:.6g} ({suffix})"
            remedy = "Keep its block with --keep-float, or export bf16." if np.isfinite(worst) else REPAIR
            raise ExportError(f"weight {name!r}", got=f"{worst:.6g}", expected=expected, remedy=remedy)
        return converted

    return add_computed(graph, f"{name}/{suffix}", convert, dtype, shape)


_ACTIVATIONS: Final = ("Gelu", "Sigmoid", "Relu")
# Between a projection and the logits: rotary positions and the scale.
_BEFORE_LOGITS: Final = ("Mul", "Add", "Sub", "Neg")


def half_nodes(graph: ir.Graph, matmuls: FormMatMuls) -> set[ir.Node]:
    """Return the nodes to compute in half precision: every float they read is a constant or comes from one of them.

    MatMuls and the two factors of attention's second MatMul are worth a cast.
    """
    logits = _logit_nodes(graph)
    half = set(matmuls.converted)
    for node in matmuls.converted:  # a weight of integers becomes half precision as it is unpacked
        if (unpacked := parent(node, 1, "DequantizeLinear")) is not None:
            half.add(unpacked)
    for node in graph:  # in topological order
        if node in half or node.domain or node in logits or (matmuls.kept_blocks and block_of(node) in matmuls.kept_blocks):
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
    if node.op_type in MOVES or node.op_type in _ACTIVATIONS:
        return True
    constants = [value for value in _floats(node) if is_constant(value)]
    if node.op_type == "Add":  # a bias; an Add of two results is the residual stream, one of a matrix the positions
        return len(constants) == 1 and constants[0].shape is not None and len(constants[0].shape) == 1
    if node.op_type == "Mul":  # gated activations; of numbers only QuickGELU's 1.702, any other is a scale or a gate
        reader = only_reader(node.outputs[0])
        before_sigmoid = reader is not None and reader.op_type == "Sigmoid"
        return not constants or (single_number(constants[0]) is not None and before_sigmoid)
    return False


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
            if producer is None or producer in seen or producer.op_type not in (*MOVES, *_BEFORE_LOGITS):
                continue
            seen.add(producer)
            if producer.op_type == "Add" and any(is_constant(value) for value in producer.inputs):
                continue  # a projection's bias
            if producer.op_type in _BEFORE_LOGITS:
                found.add(producer)
            waiting += [value.producer() for value in producer.inputs if value is not None]
    return found
