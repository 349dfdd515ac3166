"""Random small graphs: every form is valid, runs, keeps contract and source, and errs no more than its format may."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from rfedge.bundle.artifact import hash_file
from rfedge.export.int8.options import PLAIN, Int8Options
from rfedge.export.passes.graph_files import write_graph
from rfedge.export.precisions.cpu_int8 import lower_int8
from rfedge.export.precisions.runs_here import write_emulation
from rfedge.export.quantize import quantize_int8
from tests.export.error_bounds import Format, bound_errors
from tests.export.float_graphs import graph_of, make_bf16, make_fp16, make_int4_weight, make_int8_weight, run

node = helper.make_node
Arrays = dict[str, npt.NDArray[np.float32]]
WIDTHS = st.integers(1, 48) | st.sampled_from([32, 64])  # blocks of 32 that are whole, and some that are not
LAYERS = ("linear", "biased", "gemm", "transposed gemm", "gelu", "erf", "norm", "softmax", "mix")


class Drawn(NamedTuple):
    """A float graph with the inputs that it is run on."""

    model: ir.Model
    inputs: Arrays


class _Builder:
    """Appends layers (tokens, width) -> (tokens, width) to a graph."""

    def __init__(self, rng: np.random.Generator, tokens: int) -> None:
        self.rng, self.tokens = rng, tokens
        self.nodes: list[onnx.NodeProto] = []
        self.constants: Arrays = {}

    def constant(self, array: npt.NDArray[np.floating]) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array.astype(np.float32)
        return name

    def add(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(node(op_type, list(inputs), [name], **attributes))
        return name

    def weight(self, rows: int, columns: int) -> npt.NDArray[np.floating]:
        return self.rng.standard_normal((rows, columns)) / np.sqrt(rows)

    def layer(self, kind: str, value: str, width: int, columns: int) -> tuple[str, int]:
        if kind in ("linear", "biased"):
            value = self.add("MatMul", value, self.constant(self.weight(width, columns)))
            if kind == "biased":
                value = self.add("Add", value, self.constant(self.rng.standard_normal(columns)))
            return value, columns
        if "gemm" in kind:
            transposed = kind == "transposed gemm"
            weight = self.weight(width, columns)
            inputs = [self.constant(weight.T if transposed else weight), self.constant(self.rng.standard_normal(columns))]
            return self.add("Gemm", value, *inputs, transB=int(transposed)), columns
        if kind == "erf":  # GELU as older exporters spell it
            inside = self.add("Mul", value, self.constant(np.array(1 / np.sqrt(2))))
            above = self.add("Add", self.add("Erf", inside), self.constant(np.array(1.0)))
            return self.add("Mul", self.add("Mul", value, self.constant(np.array(0.5))), above), width
        if kind == "norm":
            gain, bias = self.constant(self.rng.uniform(0.5, 2, width)), self.constant(self.rng.standard_normal(width))
            return self.add("LayerNormalization", value, gain, bias, epsilon=1e-5), width
        if kind == "mix":
            return self.add("Mul", value, self.constant(self.rng.uniform(0.5, 2, width))), width
        return self.add({"gelu": "Gelu", "softmax": "Softmax"}[kind], value), width


@st.composite
def graphs(draw: st.DrawFn) -> Drawn:
    """1 to 5 layers, some inside a residual path, then a MatMul; one or two inputs, one or two outputs."""
    builder = _Builder(np.random.default_rng(draw(st.integers(0, 9999))), draw(st.integers(1, 5)))
    width = draw(st.sampled_from([3, 16, 32, 64]))
    shapes = {"x": (builder.tokens, width)}
    value = "x"
    if draw(st.booleans()):
        shapes["z"] = (builder.tokens, width)
        value = builder.add("Add", "x", "z")
    outputs = []
    for kind in draw(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=4)):
        residual = draw(st.booleans())
        before, (value, after) = value, builder.layer(kind, value, width, width if residual else draw(WIDTHS))
        if residual and after == width:
            value = builder.add("Add", before, value)
        width = after
    if draw(st.booleans()):
        outputs.append(value)
    value, _ = builder.layer(draw(st.sampled_from(LAYERS[:4])), value, width, draw(WIDTHS))
    model = graph_of(builder.nodes, builder.constants, shapes, [*outputs, value])
    inputs = {name: builder.rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return Drawn(model, inputs)


def _int8(source: Path, target: Path, inputs: Arrays, options: Int8Options) -> None:
    quantize_int8(source, target, [inputs], options=options)


def _lowered(source: Path, target: Path, inputs: Arrays) -> None:
    between = target.with_name("qdq.onnx")
    _int8(source, between, inputs, PLAIN)
    lower_int8(between, target)
    between.unlink()


Make = Callable[[Path, Path, Arrays], object]
FORMS: dict[str, tuple[Make, Format]] = {
    "fp16": (lambda source, target, _: make_fp16(source, target), Format(unit=2.0**-11, least=2.0**-25)),
    "bf16": (lambda source, target, _: make_bf16(source, target), Format(unit=2.0**-8)),
    "int8-weight": (lambda source, target, _: make_int8_weight(source, target), Format(weights="columns", rounds_rows=True)),
    "int4-weight": (
        lambda source, target, _: make_int4_weight(source, target),
        Format(weights="4-bit symmetric blocks", rounds_rows=True),
    ),
    "int8": (
        lambda source, target, inputs: _int8(source, target, inputs, PLAIN),
        Format(weights="columns", calibrated=True),
    ),
    # Folding, centring and compensation choose what makes this very error smaller, so they are held to the same bound.
    "int8 as exported": (
        lambda source, target, inputs: _int8(source, target, inputs, Int8Options()),
        Format(weights="columns", calibrated=True),
    ),
    "int8 on integer kernels": (_lowered, Format(weights="columns", calibrated=True)),
}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=graphs())
def test_a_form_keeps_its_promises(form: str, drawn: Drawn) -> None:
    make, rounding = FORMS[form]
    with tempfile.TemporaryDirectory() as name:
        source, target, emulation = (Path(name) / f"{file}.onnx" for file in ("source", "target", "emulation"))
        write_graph(drawn.model, source)
        before = hash_file(source)
        make(source, target, drawn.inputs)
        assert hash_file(source) == before, "the source is left as it was"
        assert {path.name for path in Path(name).iterdir()} == {"source.onnx", "target.onnx"}, "and nothing else is written"

        graph, written = onnx.load(source), onnx.load(target)
        ours = any(item.domain for item in written.graph.node)  # the checker knows no types of com.microsoft
        onnx.checker.check_model(written, full_check=not ours)
        for kind in ("input", "output"):
            assert _contract(written, kind) == _contract(graph, kind)

        try:
            results = run(target, drawn.inputs)
        except NoKernel:  # bf16 on most CPUs
            write_emulation(target, emulation)
            results = run(emulation, drawn.inputs)
        expected = bound_errors(graph, drawn.inputs, rounding)
        exact = run(source, drawn.inputs)
        for output, result, reference in zip(graph.graph.output, results, exact, strict=True):
            value, bound = expected[output.name]
            assert np.abs(reference - value).max() <= bound_errors(graph, drawn.inputs, Format())[output.name][1].max()
            assert result.dtype == np.float32
            assert np.isfinite(result).all()
            assert (np.abs(result - value) <= bound).all(), (np.abs(result - value) / bound).max()


def _contract(model: onnx.ModelProto, kind: str) -> list[tuple[str, int, tuple[int, ...]]]:
    return [
        (value.name, value.type.tensor_type.elem_type, tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim))
        for value in getattr(model.graph, kind)
    ]


def test_the_bound_of_each_form_would_notice_a_coarser_one(tmp_path: Path) -> None:
    """A bound that anything meets proves nothing: one MatMul that is rounded with twice the step breaks it."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 16)).astype(np.float32)
    x = np.eye(32, dtype=np.float32)  # reads one weight at a time, so that nothing averages
    model = graph_of([node("MatMul", ["x", "weight"], ["y"])], {"weight": weight}, {"x": (32, 32)}, ["y"])
    proto = ir.to_proto(model)
    for form, levels in (("int8-weight", 63), ("int4-weight", 3)):
        bound = bound_errors(proto, {"x": x}, Format(weights=FORMS[form][1].weights))["y"][1]
        step = np.abs(weight).max(axis=0) / levels
        coarse = np.rint(weight / step) * step
        assert (np.abs(coarse - weight) > bound).mean() > 0.1, form
    halves = bound_errors(proto, {"x": x}, FORMS["fp16"][1])["y"][1]
    as_bf16 = bound_errors(proto, {"x": x}, FORMS["bf16"][1])["y"][1]
    truncated = (weight.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    assert (np.abs(truncated - weight) > halves).mean() > 0.5
    assert (np.abs(truncated - weight) <= as_bf16).all()


def test_a_matmul_right_after_a_matmul_is_quantized_as_well(tmp_path: Path) -> None:
    """The bias that corrects the first renames what the second reads."""
    rng = np.random.default_rng(0)
    constants = {name: rng.standard_normal((16, 16)).astype(np.float32) for name in ("first", "second")}
    nodes = [node("MatMul", ["x", "first"], ["between"]), node("MatMul", ["between", "second"], ["y"])]
    write_graph(graph_of(nodes, constants, {"x": (4, 16)}, ["y"]), tmp_path / "source.onnx")
    inputs = {"x": rng.standard_normal((4, 16)).astype(np.float32)}
    assert quantize_int8(tmp_path / "source.onnx", tmp_path / "int8.onnx", [inputs]) == 2
    ((exact,), (rounded,)) = (run(tmp_path / f"{name}.onnx", inputs) for name in ("source", "int8"))
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()
