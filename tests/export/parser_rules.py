"""What the ONNX parsers of TensorRT take, as facts: a graph that keeps to them parses on a board whose library is not here.

Sources, all of github.com/onnx/onnx-tensorrt unless said otherwise:

10.3  docs/operators.md of 10.0 and 10.1 (opset 9 to 20; types per operator; axes of reductions, Squeeze and Unsqueeze are
      initializers), docs/Changelog.md (10.0: int4; 10.3: Slice with axes as tensors), onnxOpImporters.cpp of 10.1 (scales of
      quantizers positive; zero-points zero and as many as scales; one blocked axis; int4 with an even last axis; what
      DequantizeLinear gives has its scale's type, whatever the scale of the quantizer before it). The importer reads int4
      in blocks, which ONNX has from opset 21 on, and refuses no opset above its documented range (ModelImporter.cpp).
10.16 docs/operators.md of 10.15 (opset 9 to 24).
11    docs.nvidia.com/deeplearning/tensorrt, ONNX Opset Guide (opset 9 to 25), and the release notes of 11.5, which add opset
      25: 24 is what every 11 takes. Weak typing is gone, so nothing here relies on a flag.

Everywhere: uint8 at inputs and outputs only, so a Cast reads it; operators of other domains are plugins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

_FLOATS: Final = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
_NUMBERS: Final = _FLOATS | {"INT32", "INT64"}
_ALL: Final = _NUMBERS | {"BOOL"}
_GROUPS: Final[tuple[tuple[frozenset[str], str], ...]] = (
    (_FLOATS, "Clip Conv Erf Exp Floor Gemm LSTM LayerNormalization MatMul QuantizeLinear Reciprocal Round Sigmoid"),
    (_FLOATS, "Log Softmax Sqrt Tanh TopK"),
    (_NUMBERS, "Abs Add Div Equal Gelu Greater GreaterOrEqual Less LessOrEqual Max Min Mul Neg Pow Range ReduceMax"),
    (_NUMBERS, "ReduceMean ReduceSum Relu Sub"),
    (_ALL, "Concat ConstantOfShape Expand Flatten Gather Identity Reshape Shape Slice Split Squeeze Transpose Unsqueeze"),
    (_ALL, "Where"),
    (_ALL | {"UINT8"}, "Cast"),
    (frozenset({"BOOL"}), "And Not Or"),
    (frozenset({"INT8", "FLOAT8E4M3FN", "INT4"}), "DequantizeLinear"),
)
_OPERATORS: Final[Mapping[str, frozenset[str]]] = {name: types for types, names in _GROUPS for name in names.split()}
# operator -> place of an input that must be an initializer
_CONSTANT_INPUTS: Final = {"ReduceMax": 1, "ReduceMean": 1, "ReduceSum": 1, "Squeeze": 1, "TopK": 1, "Unsqueeze": 1}
_QUANTIZERS: Final = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True)
class ParserRules:
    """One parser.

    Attributes:
        opsets: least and greatest, as documented.
        blocked_opset: greatest opset for a graph that needs it for nothing but int4 weights in blocks.
        operators: standard operator -> types of its data inputs.
    """

    opsets: tuple[int, int]
    blocked_opset: int
    operators: Mapping[str, frozenset[str]]


PARSERS: Final[Mapping[str, ParserRules]] = {
    "10.3": ParserRules(
        (9, 20), 21, {name: types for name, types in _OPERATORS.items() if name != "Pow"} | {"Pow": _FLOATS}
    ),
    "10.16": ParserRules((9, 24), 24, _OPERATORS),
    "11": ParserRules((9, 24), 24, _OPERATORS),
}


def broken_rules(model: onnx.ModelProto, rules: ParserRules, folder: Path | None = None) -> list[str]:
    """Return what the parser would refuse, one line per node; empty for a graph that it takes.

    Args:
        model: the graph as an engine is built from it.
        rules: of `PARSERS`.
        folder: where the graph's file is, for weights beside it.
    """
    return list(_broken(_Graph(model, folder), rules))


class _Graph:
    """A graph with the types of its values."""

    def __init__(self, model: onnx.ModelProto, folder: Path | None) -> None:
        self.opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
        self.nodes = list(model.graph.node)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._casts: dict[str, str] = {node.output[0]: node.input[0] for node in self.nodes if node.op_type == "Cast"}
        self._folder = str(folder or "")
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self._types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.input, *inferred.value_info)}
        self._types |= {value.name: value.type.tensor_type.elem_type for value in inferred.output}
        self._types |= {name: tensor.data_type for name, tensor in self.tensors.items()}

    def source_of_cast(self, name: str) -> str:
        """Return what a value is cast from: scales of blocks are stored in fp16, and a folded Cast is a constant too."""
        return self._casts.get(name, name)

    def type_of(self, name: str) -> str:
        found: str = TensorProto.DataType.Name(self._types.get(name, 0))
        return found

    def array(self, name: str) -> npt.NDArray[Any]:
        return numpy_helper.to_array(self.tensors[name], base_dir=self._folder)


def _broken(graph: _Graph, rules: ParserRules) -> Iterator[str]:
    low, high = rules.opsets
    blocked = any(graph.type_of(node.input[0]) == "INT4" for node in graph.nodes if node.op_type == "DequantizeLinear")
    if not low <= graph.opset <= (rules.blocked_opset if blocked else high):
        yield f"opset {graph.opset} is not from {low} to {high}"
    for node in graph.nodes:
        where = f"{node.name} ({node.op_type})"
        if node.domain not in ("", "ai.onnx"):
            yield f"{where} is of domain {node.domain}"
            continue
        if node.op_type not in rules.operators:
            yield f"{where} is not in the table of operators"
            continue
        for check in (_types, _constant_inputs, _quantizer, _recurrence):
            yield from (f"{where} {text}" for text in check(graph, node, rules))


Check = Callable[[_Graph, onnx.NodeProto, ParserRules], Iterator[str]]


def _types(graph: _Graph, node: onnx.NodeProto, rules: ParserRules) -> Iterator[str]:
    data = [name for name in node.input[:1] if name]
    if node.op_type in ("Add", "Sub", "Mul", "Div", "MatMul", "Gemm", "Max", "Min", "Concat", "Pow"):
        data = [name for name in node.input if name]
    types = {graph.type_of(name) for name in data}
    for name in sorted(types - rules.operators[node.op_type]):
        yield f"reads {name}"
    if len(types & _FLOATS) > 1:  # strongly typed: nothing is cast on its own
        yield f"reads {' and '.join(sorted(types & _FLOATS))}"


def _constant_inputs(graph: _Graph, node: onnx.NodeProto, _: ParserRules) -> Iterator[str]:
    place = _CONSTANT_INPUTS.get(node.op_type)
    if place is not None and len(node.input) > place and node.input[place] not in graph.tensors:
        yield f"has axes that are no initializer: {node.input[place]}"
    if node.op_type == "LayerNormalization" and len([name for name in node.output if name]) > 1:
        yield "gives more than its first output"


def _quantizer(graph: _Graph, node: onnx.NodeProto, _: ParserRules) -> Iterator[str]:
    if node.op_type not in _QUANTIZERS:
        return
    name = graph.source_of_cast(node.input[1])
    if name not in graph.tensors:
        yield "has a scale that is no constant"
        return
    scale = graph.array(name).astype(np.float64)
    if not (scale > 0).all():
        yield "has a scale that is not positive"
    if len(node.input) > 2 and node.input[2]:
        zeros = graph.array(node.input[2])
        if zeros.astype(np.float32).any():
            yield "has a zero-point that is not 0"
        if zeros.size != scale.size:
            yield f"has {zeros.size} zero-points for {scale.size} scales"
    data = graph.tensors.get(node.input[0])
    if data is None:
        if scale.size > 1:
            yield "has more than one scale for activations"
        return
    shape = tuple(data.dims)
    if scale.size > 1 and scale.ndim == len(shape):
        blocks = [size // count for size, count in zip(shape, scale.shape, strict=True)]
        if sum(block == 1 for block in blocks) != len(shape) - 1:
            yield "has blocks along more than one axis"
    if graph.type_of(node.input[0]) == "INT4" and shape[-1] % 2:
        yield f"has int4 with an odd last axis of {shape[-1]}"


def _recurrence(graph: _Graph, node: onnx.NodeProto, _: ParserRules) -> Iterator[str]:
    if node.op_type != "LSTM":
        return
    attributes = {item.name: item.i for item in node.attribute}
    for name in ("layout", "input_forget"):
        if attributes.get(name, 0):
            yield f"has {name} {attributes[name]}"
