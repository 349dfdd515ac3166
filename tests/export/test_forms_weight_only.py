"""int8-weight and int4-weight on `tiny`, and how weights are rounded."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import helper

from rfedge.bundle.traces import compare_traces
from rfedge.contract import policy_contract
from rfedge.errors import ConfigError, ExportError
from rfedge.export.parity import onnx_rollout
from rfedge.export.passes.graph_files import read_graph, write_graph
from rfedge.export.precision_audit import effective_precisions, graph_matmuls
from rfedge.export.precisions.block_quantization import (
    BLOCK_SIZE,
    dequantize_blocks,
    quantize_blocks,
    quantize_columns,
)
from tests.errors import raises
from tests.export.float_graphs import (
    TracedPolicy,
    draw,
    graph_of,
    make_int4_weight,
    make_int8_weight,
    op_types,
    open_session,
    passed_policy,
    relative_rms,
    run,
)

node = helper.make_node


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TracedPolicy:
    return passed_policy(tmp_path_factory)


# (what makes it, its settings, weight bits and scales per weight, bounds of the feature and of the action)
VARIANTS = {
    "int8": (make_int8_weight, {}, 0.35, 0.03, 0.03),
    "int4": (make_int4_weight, {"keep_float": ()}, 0.25, 0.25, 0.25),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_tiny_runs_smaller_and_close(variant: str, tiny: TracedPolicy, tmp_path: Path) -> None:
    """Six random frames with carried state. 4-bit rounding of random weights is coarse; trained ones are no worse."""
    make, options, size, feature_bound, action_bound = VARIANTS[variant]
    blocks = effective_precisions(make(tiny.backbone, tmp_path / "form.onnx", **options)[0])
    assert sum((Counter(found.matmuls) for found in blocks.values()), Counter()) == {f"{variant}-weight": 30, "fp32": 3}
    assert blocks["vision.blocks.1"].kind == blocks["resampler.layers.0"].kind == f"{variant}-weight"
    assert blocks["preprocess_gripper"].kind == "fp32"
    # names and the exporter's notes weigh 0.3 MB, which no form makes smaller
    assert (tmp_path / "form.onnx").stat().st_size - 300_000 < size * tiny.backbone.stat().st_size
    onnx.checker.check_model(onnx.load(tmp_path / "form.onnx"), full_check=True)
    rng = np.random.default_rng(1)
    episode = [policy_contract(tiny.config).backbone.sample_inputs(rng) for _ in range(6)]
    reference, result = (
        onnx_rollout(tiny.config, path, tiny.head, [episode]) for path in (tiny.backbone, tmp_path / "form.onnx")
    )
    metrics = compare_traces(reference, result)
    assert 0 < metrics["feature_relative_rms"] < feature_bound
    assert metrics["action_max_error"] < action_bound


@pytest.mark.parametrize(("make", "bits"), [(make_int8_weight, 8), (make_int4_weight, 4)])
def test_onnx_runtime_keeps_the_standard_form_packed(make: Any, bits: int, tiny: TracedPolicy, tmp_path: Path) -> None:
    """It makes MatMulNBits of DequantizeLinear and MatMul; without that the weight would be fp32 in memory."""
    make(tiny.backbone, tmp_path / "form.onnx", keep_float=())
    form = read_graph(tmp_path / "form.onnx")
    assert {item.domain for item in form.graph} == {""}
    assert form.graph.opset_imports[""] == (21 if bits == 4 else 20)
    open_session(tmp_path / "form.onnx", optimized=tmp_path / "optimized.onnx")
    optimized = read_graph(tmp_path / "optimized.onnx").graph
    kernels = Counter((item.op_type, item.attributes.get_int("bits", 0)) for item in optimized)
    assert kernels["MatMulNBits", bits] == 30
    assert kernels["DequantizeLinear", 0] == 0


def test_blocks_can_be_kept_in_fp32(tiny: TracedPolicy, tmp_path: Path) -> None:
    blocks = effective_precisions(make_int4_weight(tiny.backbone, tmp_path / "form.onnx", keep_float=("decoder",))[0])
    assert blocks["decoder.layers.0.block"].kind == "fp32"
    assert blocks["vision.blocks.0"].kind == "int4-weight"
    with raises(ConfigError, "keep_float", got="'language'", expected="one of ..."):
        make_int4_weight(tiny.backbone, tmp_path / "other.onnx", keep_float=("language",))


@pytest.mark.parametrize("options", [v[:2] for v in VARIANTS.values()], ids=list(VARIANTS))
def test_a_weight_that_is_no_number_is_named(options: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    weight = draw(np.random.default_rng(0), 32, 4)
    weight[3, 1] = np.nan
    write_graph(graph_of([node("MatMul", ["x", "w"], ["y"])], {"w": weight}, {"x": (2, 32)}, ["y"]), tmp_path / "fp32.onnx")
    with raises(ExportError, "weight 'w'", got="NaN or Inf", expected="finite numbers", remedy="Repair the checkpoint..."):
        options[0](tmp_path / "fp32.onnx", tmp_path / "form.onnx", **options[1])
    assert [item.name for item in tmp_path.iterdir()] == ["fp32.onnx"]


@pytest.mark.parametrize(("rows", "columns"), [(32, 3), (100, 24), (50, 5), (7, 2)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_matmul_of_any_size_is_that_of_the_rounded_weight(variant: str, rows: int, columns: int, tmp_path: Path) -> None:
    """Also where blocks of 32 do not divide the inputs: there the standard form of int4 keeps the MatMul in fp32."""
    make, options, *_ = VARIANTS[variant]
    rng = np.random.default_rng(rows)
    weight, x = draw(rng, rows, columns), draw(rng, 2, rows)
    model = graph_of([node("MatMul", ["x", "w"], ["y"])], {"w": weight}, {"x": (2, rows)}, ["y"])
    write_graph(model, tmp_path / "fp32.onnx")
    make(tmp_path / "fp32.onnx", tmp_path / "form.onnx", **options)
    if variant == "int4" and rows % BLOCK_SIZE:
        assert effective_precisions(tmp_path / "form.onnx")["unnamed"].kind == "fp32"
        return
    if variant == "int8":
        numbers, scale = quantize_columns(weight)
        rounded = numbers.astype(np.float32) * scale
    else:
        rounded = dequantize_blocks(quantize_blocks(weight))
    # ONNX Runtime also rounds x to int8 in the kernels that it makes of the standard form
    # scales are in fp16
    tolerance = 0.02 * np.abs(x).max() * np.abs(weight).sum(axis=0).max()
    np.testing.assert_allclose(run(tmp_path / "form.onnx", {"x": x})[0], x @ rounded, atol=tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
def test_frames_say_which_errors_make_up_for_each_other(variant: str, tmp_path: Path) -> None:
    """Inputs that vary together around a mean of their own: less than half of the error is left, and none at the mean."""
    make, options, *_ = VARIANTS[variant]
    rng = np.random.default_rng(0)
    weight, mixing, mean = draw(rng, 96, 40), draw(rng, 8, 96), 3 * draw(rng, 96)
    write_graph(graph_of([node("MatMul", ["x", "w"], ["y"])], {"w": weight}, {"x": (64, 96)}, ["y"]), tmp_path / "fp32.onnx")
    frames = [{"x": mean + draw(rng, 64, 8) @ mixing + 0.05 * draw(rng, 64, 96)} for _ in range(4)]
    unseen = mean + draw(rng, 64, 8) @ mixing + 0.05 * draw(rng, 64, 96)
    errors = {}
    for name, seen in {"nearest": (), "calibrated": frames}.items():
        make(tmp_path / "fp32.onnx", tmp_path / "form.onnx", frames=seen, **options)
        errors[name] = _in_fp32(tmp_path / "form.onnx", unseen) - unseen @ weight
    assert np.abs(errors["calibrated"]).mean() < 0.5 * np.abs(errors["nearest"]).mean()
    assert np.abs(errors["calibrated"].mean(axis=0)).max() < 0.1 * np.abs(errors["nearest"].mean(axis=0)).max()
    assert {path.name for path in tmp_path.iterdir()} == {"fp32.onnx", "form.onnx"}


def _in_fp32(form: Path, x: np.ndarray) -> np.ndarray:
    """Run one MatMul with its rounded weight in numpy: ONNX Runtime's kernels would round x as well."""
    result: np.ndarray = open_session(read_graph(form), plain=True).run(None, {"x": x})[0]
    return result


def test_a_weight_that_two_inputs_read_is_rounded_for_both(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mixing, weight = draw(rng, 4, 64), draw(rng, 64, 24)
    nodes = [node("MatMul", ["x", "w"], ["y"]), node("MatMul", ["z", "w"], ["v"])]
    write_graph(graph_of(nodes, {"w": weight}, {"x": (64, 64), "z": (64, 64)}, ["y", "v"]), tmp_path / "fp32.onnx")
    inputs = {name: mean + draw(rng, 64, 4) @ mixing for name, mean in (("x", 2.0), ("z", np.float32(-5)))}
    inputs = {name: array.astype(np.float32) for name, array in inputs.items()}
    make_int4_weight(tmp_path / "fp32.onnx", tmp_path / "nearest.onnx")
    make_int4_weight(tmp_path / "fp32.onnx", tmp_path / "form.onnx", frames=[inputs])
    exact, nearest, rounded = (run(tmp_path / f"{name}.onnx", inputs) for name in ("fp32", "nearest", "form"))
    for index in range(2):
        assert relative_rms(rounded[index], exact[index]) < 0.5 * relative_rms(nearest[index], exact[index])


def test_attention_to_the_cameras_has_eight_bits_unless_names_replace_it(tiny: TracedPolicy, tmp_path: Path) -> None:
    blocks = effective_precisions(make_int4_weight(tiny.backbone, tmp_path / "form.onnx")[0])
    assert blocks["vision.blocks.0"].kind == "int4-weight"
    assert blocks["resampler.layers.0"].matmuls == {"int4-weight": 2, "int8-weight": 2}
    everything = effective_precisions(make_int4_weight(tiny.backbone, tmp_path / "all.onnx", keep_float=())[0])
    assert everything["resampler.layers.0"].kind == "int4-weight"
    assert (tmp_path / "all.onnx").stat().st_size < (tmp_path / "form.onnx").stat().st_size
    reference, mixed, coarse = (
        run(path, tiny.inputs)[0] for path in (tiny.backbone, tmp_path / "form.onnx", tmp_path / "all.onnx")
    )
    assert relative_rms(mixed, reference) < relative_rms(coarse, reference)


def test_kernels_over_features_have_eight_bits_and_those_over_a_camera_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [node("Conv", ["x", "first"], ["y"]), node("Conv", ["y", "second"], ["z"])]
    constants = {"first": draw(rng, 16, 3, 3, 3), "second": draw(rng, 8, 16, 3, 3)}
    write_graph(graph_of(nodes, constants, {"x": (1, 3, 9, 9)}, ["z"]), tmp_path / "fp32.onnx")
    make_int4_weight(tmp_path / "fp32.onnx", tmp_path / "form.onnx")
    kinds = {item.name: kind for item, kind in graph_matmuls(onnx.load(tmp_path / "form.onnx"))}
    assert kinds == {"node_y": "fp32", "node_z": "int8-weight"}
    form = read_graph(tmp_path / "form.onnx").graph
    assert form.initializers["second/int8"].dtype == ir.DataType.INT8
    x = {"x": draw(rng, 1, 3, 9, 9)}
    assert 0 < relative_rms(run(tmp_path / "form.onnx", x)[0], run(tmp_path / "fp32.onnx", x)[0]) < 0.01
    make_int8_weight(tmp_path / "fp32.onnx", tmp_path / "form.onnx")
    assert effective_precisions(tmp_path / "form.onnx")["unnamed"].kind == "fp32"


def test_a_transposed_gemm_keeps_one_scale_per_output(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight, x = draw(rng, 5, 64) * np.float32([[1], [10], [100], [1000], [10000]]), draw(rng, 2, 64)
    model = graph_of([node("Gemm", ["x", "w"], ["y"], transB=1)], {"w": weight}, {"x": (2, 64)}, ["y"])
    write_graph(model, tmp_path / "fp32.onnx")
    make_int8_weight(tmp_path / "fp32.onnx", tmp_path / "int8.onnx")
    error = np.abs(run(tmp_path / "int8.onnx", {"x": x})[0] - x @ weight.T).max(axis=0)
    assert (error < 0.2 * 10.0 ** np.arange(5)).all(), "the small outputs are as exact as the large ones"
    make_int4_weight(tmp_path / "fp32.onnx", tmp_path / "int4.onnx")
    assert effective_precisions(tmp_path / "int4.onnx")["unnamed"].kind == "fp32", "no kernel with packed weights is a Gemm"


def test_a_weight_of_two_matmuls_is_stored_once(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"]), node("MatMul", ["y", "w"], ["z"])]
    for make, options, *_ in VARIANTS.values():
        model = graph_of(nodes, {"w": draw(np.random.default_rng(0), 64, 64)}, {"x": (2, 64)}, ["z"])
        write_graph(model, tmp_path / "fp32.onnx")
        make(tmp_path / "fp32.onnx", tmp_path / "form.onnx", **options)
        form = read_graph(tmp_path / "form.onnx")
        assert len(form.graph.initializers) == 2
        assert op_types(form).count("DequantizeLinear") == 1
        run(form, {"x": draw(np.random.default_rng(1), 2, 64)})


# Rounding

weights = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3).map(lambda count: BLOCK_SIZE * count), st.integers(1, 9)),
    elements=st.floats(-1000, 1000, width=32),
)


@settings(max_examples=60, deadline=None)
@given(weight=weights)
def test_rounding_moves_no_number_by_more_than_half_a_step(weight: np.ndarray) -> None:
    """And scales are above zero: TensorRT's parser refuses any other."""
    quantized = quantize_blocks(weight)
    assert (quantized.scales > 0).all()
    step = quantized.scales.repeat(BLOCK_SIZE, axis=0)
    assert (np.abs(dequantize_blocks(quantized) - weight) <= step * 0.501).all()
    numbers, scale = quantize_columns(weight)
    assert (np.abs(numbers * scale - weight) <= scale * 0.501).all()
    assert np.abs(numbers.astype(np.int16)).max() <= 127


def test_a_weight_of_nothing_or_of_tiny_numbers_is_zero() -> None:
    for value in (0.0, 1e-45, -1e-44):
        weight = np.full((32, 2), value, np.float32)
        assert not dequantize_blocks(quantize_blocks(weight)).any()
        numbers, scale = quantize_columns(weight)
        assert np.isfinite(scale).all()
        assert not numbers.any()


def test_int4_is_stored_in_half_bytes(tiny: TracedPolicy, tmp_path: Path) -> None:
    make_int4_weight(tiny.backbone, tmp_path / "form.onnx", keep_float=())
    weights = [
        value for value in read_graph(tmp_path / "form.onnx").graph.initializers.values() if value.dtype == ir.DataType.INT4
    ]
    assert len(weights) == 30
    for value in weights:
        assert value.const_value.nbytes == value.const_value.size // 2
