"""The fp16 form of engines: its numbers in ONNX Runtime, its kernels in TensorRT, at real size in the slow tests."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from rfedge.bundle.artifact import EngineForm, load_bundle
from rfedge.errors import ConfigError
from rfedge.export.parity import graph_call
from rfedge.export.passes.graph_files import read_graph
from rfedge.export.precisions.cpu_int8 import lower_int8
from rfedge.export.tensorrt.audit import block_rows, exceeded, fp32_rows, parse_limit
from rfedge.export.tensorrt.engine_form import default_islands, int8_matmuls, to_engine_form
from rfedge.export.tensorrt.engine_proof import LARGEST_NAME, _beyond_fp16, write_emulation
from rfedge.nvidia.tensorrt import TensorRt
from tests.errors import raises
from tests.export.engine_blocks import KINDS, build_in_fp16, write_block, write_form
from tests.export.tensorrt_bundles import load_rtx, small_graph


def relative(result: Any, expected: Any) -> float:
    return float(np.sqrt(((result - expected) ** 2).mean() / (expected**2).mean()))


@pytest.fixture(scope="module", params=KINDS)
def block(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """A block of an eighth of its real width in fp32, and its contract."""
    path = tmp_path_factory.mktemp(request.param) / "fp32.onnx"
    return request.param, path, write_block(request.param, path, divide=8)


def test_int8_with_fp16_is_as_near_to_fp32_as_int8_with_fp32(block: tuple[str, Path, Any], tmp_path: Path) -> None:
    _, path, contract = block
    write_form(path, tmp_path / "int8.onnx", "int8", contract)
    lower_int8(tmp_path / "int8.onnx", tmp_path / "cpu.onnx")
    write_emulation(tmp_path / "int8.onnx", (), tmp_path / "emulated.onnx")
    kernels = [node.op_type for node in onnx.load(tmp_path / "emulated.onnx").graph.node]
    assert kernels.count("MatMulIntegerToFloat") == len(int8_matmuls(read_graph(tmp_path / "int8.onnx").graph))
    inputs = contract.sample_inputs(np.random.default_rng(1))
    expected, cpu, emulated = (
        graph_call(file)(inputs)["y"] for file in (path, tmp_path / "cpu.onnx", tmp_path / "emulated.onnx")
    )
    assert relative(emulated, expected) < 1.1 * relative(cpu, expected) < 0.05
    assert relative(emulated, expected) > 1e-4, "something was rounded"


@pytest.mark.parametrize("form", ["fp16", "int4", "int8-weight"])
def test_fp16_alone_costs_a_thousandth(block: tuple[str, Path, Any], form: str, tmp_path: Path) -> None:
    _, path, contract = block
    write_form(path, tmp_path / "form.onnx", form, contract)
    write_emulation(tmp_path / "form.onnx", (), tmp_path / "emulated.onnx")
    inputs = contract.sample_inputs(np.random.default_rng(1))
    plain, emulated = (graph_call(tmp_path / name)(inputs)["y"] for name in ("form.onnx", "emulated.onnx"))
    # ONNX Runtime makes kernels with int8 activations of rounded weights; in fp16 there is nothing else to differ by
    assert 1e-5 < relative(emulated, plain) < (0.002 if form == "fp16" else 0.03)


def test_no_node_reads_two_float_types_and_the_border_is_that_of_the_contract(block: tuple[str, Path, Any]) -> None:
    _, path, _ = block
    model = read_graph(path)
    to_engine_form(model, ())
    for node in model.graph:
        types = {
            value.dtype
            for value in node.inputs
            if value is not None and value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
        }
        assert len(types) < 2, node.name
    assert {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_sums_of_an_int8_matmul_fit_into_fp16_before_the_scales_of_its_columns(
    block: tuple[str, Path, Any], tmp_path: Path
) -> None:
    _, path, contract = block
    write_form(path, tmp_path / "int8.onnx", "int8", contract)
    before = read_graph(tmp_path / "int8.onnx")
    after = read_graph(tmp_path / "int8.onnx")
    to_engine_form(after, ())
    for old, new in zip(int8_matmuls(before.graph), int8_matmuls(after.graph), strict=True):
        scales = [
            [node.inputs[1].const_value.numpy().astype(np.float64) for node in (item.dequantize, item.weight)]
            for item in (old, new)
        ]  # type: ignore[union-attr]
        products = [read * columns for read, columns in scales]
        np.testing.assert_allclose(products[1], products[0], rtol=2e-3)
        assert scales[1][1].max() <= 1.0
        assert scales[1][0] >= np.finfo(np.float16).smallest_normal


def test_a_number_beyond_fp16_makes_an_island_of_what_gives_and_what_reads_it(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.full((64, 64), 100.0, np.float32), "weight")
    one = numpy_helper.from_array(np.full(64, 1e-4, np.float32), "small")
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["wide"], name="up"),
        helper.make_node("Transpose", ["wide"], ["moved"], name="move", perm=[0, 1, 2]),
        helper.make_node("Mul", ["moved", "small"], ["scaled"], name="scale"),
        helper.make_node("Relu", ["scaled"], ["y"], name="relu"),
    ]
    onnx.save(small_graph(nodes, [weight, one], width=64), tmp_path / "graph.onnx")
    names = write_emulation(tmp_path / "graph.onnx", (), tmp_path / "observed.onnx", observed=True)
    assert names == ("up", "scale", "relu")
    largest = graph_call(tmp_path / "observed.onnx")({"x": np.full((1, 32, 64), 30.0, np.float32)})[LARGEST_NAME]
    np.testing.assert_allclose(largest, [192000.0, 19.2, 19.2], rtol=2e-3)
    islands = _beyond_fp16(read_graph(tmp_path / "graph.onnx").graph, dict(zip(names, map(float, largest), strict=True)))
    assert islands == {
        "up": "reaches 1.92e+05 in decoder.layers.7: fp16 ends at 65504",
        "move": "reads a number beyond fp16 in decoder.layers.7",
        "scale": "reads a number beyond fp16 in decoder.layers.7",
    }
    model = read_graph(tmp_path / "graph.onnx")
    to_engine_form(model, islands)
    assert [(node.op_type, node.outputs[0].dtype.name) for node in model.graph if node.outputs[0].dtype is not None] == [
        ("MatMul", "FLOAT"), ("Transpose", "FLOAT"), ("Mul", "FLOAT"), ("Cast", "FLOAT16"), ("Relu", "FLOAT16"),
        ("Cast", "FLOAT"),
    ]  # fmt: skip


def test_a_mask_stays_finite_and_still_hides(tmp_path: Path) -> None:
    mask = np.zeros((32, 64), np.float32)
    mask[:, 32:] = -np.inf
    nodes = [
        helper.make_node("Add", ["x", "mask"], ["logits"], name="add"),
        helper.make_node("Softmax", ["logits"], ["y"], name="softmax"),
    ]
    onnx.save(small_graph(nodes, [numpy_helper.from_array(mask, "mask")], width=64), tmp_path / "graph.onnx")
    assert write_emulation(tmp_path / "graph.onnx", (), tmp_path / "o.onnx", observed=True) == ("softmax",)
    write_emulation(tmp_path / "graph.onnx", (), tmp_path / "emulated.onnx")
    x = np.random.default_rng(0).standard_normal((1, 32, 64)).astype(np.float32) * 50
    result = graph_call(tmp_path / "emulated.onnx")({"x": x})["y"]
    assert not result[..., 32:].any()
    np.testing.assert_allclose(result, graph_call(tmp_path / "graph.onnx")({"x": x})["y"], atol=2e-2)


def test_limits_on_layers_are_read_and_refused() -> None:
    assert parse_limit("fp32>5%") == ("fp32", 5.0, True)
    assert parse_limit("unfused > 0") == ("unfused", 0.0, False)
    example = "such as fp32>5%"
    for text, expected in (("fp32", example), ("fp33>5%", "...(did you mean 'fp32'?)"), ("fp32>x", example)):
        with raises(ConfigError, "--fail-on", got=repr(text), expected=expected):
            parse_limit(text)


@pytest.fixture(scope="module")
def rtx() -> TensorRt:
    return load_rtx()


FORMS = {"fp16": ("fp16", 2.0), "int8": ("int8", 1.0), "int4": ("fp16", 0.5)}


@pytest.fixture(scope="module", params=KINDS)
def real_block(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A block of its real size in fp32, and its contract."""
    path = tmp_path_factory.mktemp(f"real-{request.param}") / "fp32.onnx"
    return path, write_block(request.param, path)


@pytest.mark.slow
@pytest.mark.trt
@pytest.mark.parametrize("form", FORMS)
def test_a_block_of_real_size_computes_in_int8_and_fp16_with_fused_attention(
    rtx: TensorRt, real_block: tuple[Path, Any], form: str, tmp_path: Path
) -> None:
    path, contract = real_block
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    num_weights = sum(math.prod(tensor.dims) for tensor in tensors if len(tensor.dims) == 2)
    write_form(path, tmp_path / "form.onnx", form, contract)
    built, audit = build_in_fp16(rtx, tmp_path / "form.onnx", contract)
    computed, bytes_per_weight = FORMS[form]
    assert set(audit.precisions) == {computed}
    assert audit.missed == ()
    assert audit.attention
    assert all(item.fused for item in audit.attention), audit.attention
    assert 0.95 < built.weights_bytes / (bytes_per_weight * num_weights) < 1.2
    allowed = ("inputs and outputs of the graph", "LayerNorm in fp16 that the builder split")
    assert all(reason.startswith(allowed) for reason, _, _ in fp32_rows(audit)), fp32_rows(audit)
    assert exceeded(audit, parse_limit("unfused>0")) is None
    assert sum(sum(row.layers.values()) * row.num_blocks for row in block_rows(audit)) == len(audit.layers)


def test_a_bundle_of_an_older_rfedge_keeps_fp32(rtx: TensorRt, tmp_path: Path) -> None:
    from rfedge.export.tensorrt.prepare import choose_islands
    from tests.runtimes.handmade_bundle import write_handmade_bundle

    write_handmade_bundle(tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.manifest.tensorrt is None
    assert choose_islands(bundle, "backbone", None) is None
    assert choose_islands(bundle, "backbone", "fp16") == default_islands(read_graph(bundle.path("backbone")))
    assert EngineForm(floats="fp32", reason="x").islands == {}
