"""fp16 and bf16 as a strongly typed graph: MatMuls in half precision, everything that is delicate in fp32.

Half precision are: MatMuls with a weight, their biases, the activation functions between two of them (GELU, QuickGELU,
SiLU), the MatMul of attention probabilities with the values, and what only moves such numbers. In fp32 stay LayerNorm
and RMSNorm, softmax and attention logits, rotary positions, gates, the residual stream, the pooling and the camera
resize. A residual stream in fp16 overflows where a language model's outliers exceed 65504, and rounds at every layer.

Inputs and outputs keep the types of the contract. Casts are written out, one per tensor and type, so that a strongly typed
TensorRT network needs no flag; no operator mixes types.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rfedge.errors import ExportError
from rfedge.export.passes.graph_files import WeightProgress, read_graph, write_graph
from rfedge.export.passes.graph_queries import add_computed, is_constant, tensor_of, tensor_shape
from rfedge.export.passes.slim import infer_shapes
from rfedge.export.precisions.form_report import FormReport, choose_matmuls
from rfedge.export.precisions.half_islands import half_nodes

_FLOAT: Final = ir.DataType.FLOAT
HALF_TYPES: Final = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_FORMATS: Final[dict[ir.DataType, tuple[Any, float]]] = {
    ir.DataType.FLOAT16: (np.dtype(np.float16), 65504.0),
    ir.DataType.BFLOAT16: (np.dtype(ml_dtypes.bfloat16), 3.3895313892515355e38),
}


# They read a number of any type.
_ANY_TYPE: Final = ("Cast", "Shape")


def make_half(
    form: Literal["fp16", "bf16"],
    source: Path,
    target: Path,
    *,
    keep_float: Sequence[str] | None = None,
    on_weight: WeightProgress = lambda *_: None,
) -> FormReport:
    """Write the fp16 or bf16 form of the fp32 graph at `source` to `target`; both may be the same path.

    bf16 has the range of fp32 with 8 bits of precision, so nothing overflows. ONNX Runtime has no bf16 kernels for the CPU
    (`rfedge.export.precisions.runs_here` says what is missing); TensorRT takes the graph from compute capability 8.0 on.

    Args:
        source: fp32 graph, weights in it or in a file beside it.
        target: the file to write; weights above 1.5 GB go into `target` + ".data".
        keep_float: beginnings of the names of blocks that stay in fp32; None for none.
        on_weight: called with (weights written, weights in all).

    Raises:
        ArtifactError: `source` is no graph.
        ConfigError: no block begins with one of `keep_float`.
        ExportError: a weight is NaN, infinite or beyond the format (fp16: 65504), which the text names; or the graph is not
            in fp32.
    """
    model = read_graph(source)
    infer_shapes(model)
    matmuls = choose_matmuls(model.graph, keep_float or ())
    set_types(model, half_nodes(model.graph, matmuls), HALF_TYPES[form])
    return FormReport(
        matmuls.names(), matmuls.reasons(), matmuls.blocks(form), write_graph(model, target, on_weight=on_weight)
    )


def set_types(model: ir.Model, half: Collection[ir.Node], dtype: ir.DataType) -> None:
    """Let the nodes `half` compute in `dtype` and all others in fp32, in place; a Cast stands where one reads another.

    Args:
        model: with types on all values; constants may be in either type.
        dtype: FLOAT16 or BFLOAT16.
    """
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
            _restore_output(graph, place, output)
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


def _restore_output(graph: ir.Graph, place: int, output: ir.Value) -> None:
    name, output.name = output.name, f"{output.name}/half"
    cast = _cast(graph, output, _FLOAT)
    cast.name = name
    graph.outputs[place] = cast


def _converted_constant(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    tensor = tensor_of(value)
    name, shape = str(value.name), tensor_shape(tensor)
    if dtype == _FLOAT:
        return add_computed(graph, f"{name}/fp32", lambda: tensor.numpy().astype(np.float32), dtype, shape)
    suffix = "fp16" if dtype == ir.DataType.FLOAT16 else "bf16"
    return add_computed(graph, f"{name}/{suffix}", _converter(tensor, name, dtype), dtype, shape)


def _converter(tensor: ir.TensorProtocol, name: str, dtype: ir.DataType) -> Callable[[], npt.NDArray[Any]]:
    kind, largest = _FORMATS[dtype]

    def convert() -> npt.NDArray[Any]:
        array = tensor.numpy()
        with np.errstate(over="ignore"):
            converted: npt.NDArray[Any] = array.astype(kind)
        if not np.isfinite(converted).all():
            worst = float(np.abs(array).max())  # NaN wins every maximum
            raise ExportError(

                    f"weight {name!r}",
                    got=f"{worst:.6g}",
                    expected=f"finite numbers up to {largest:.6g} ({'fp16' if dtype == ir.DataType.FLOAT16 else 'bf16'})",
                    remedy="Keep its block with --keep-float, or export bf16." if np.isfinite(worst)
                    else "Repair the checkpoint; no precision can hold this weight.")  # fmt: skip
        return converted

    return convert
