"""int8 graphs: histograms and ranges, rounding, folding, and the graph that comes out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from rfedge.bundle.int8_kernels import DISABLED_OPTIMIZERS
from rfedge.config import preset
from rfedge.contract import policy_contract
from rfedge.errors import ConfigError, DatasetError
from rfedge.export.int8.balance import balance_input, find_gain
from rfedge.export.int8.insert import apply_balance, rewrite_float_reader
from rfedge.export.int8.matmuls import quantizable_matmuls
from rfedge.export.int8.observe import ChannelStatistics, RoundedInput, group_by_memory, observe
from rfedge.export.int8.options import PLAIN, Int8Options, parse_smooth_quant
from rfedge.export.int8.ranges import MagnitudeHistogram, choose_magnitude, scale_from_amax
from rfedge.export.int8.rounding import round_compensated, round_nearest
from rfedge.export.passes.graph_files import read_graph, write_graph
from rfedge.export.precision_audit import effective_precisions, require_integer_kernels
from rfedge.export.quantize import quantize_int8
from rfedge.export.trace import trace_backbone
from rfedge.model import build_policy
from tests.errors import raises
from tests.tolerances import assert_same_in_fp32, backbone_terms, fp32_tolerance

Array = npt.NDArray[Any]
TERMS = backbone_terms(preset("tiny"))


def run(path: Path, inputs: dict[str, Array]) -> Array:
    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"], disabled_optimizers=list(DISABLED_OPTIMIZERS)
    )
    output: Array = session.run(None, inputs)[0]
    return output


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "backbone.onnx"
    trace_backbone(build_policy(preset("tiny"), seed=0), policy_contract(preset("tiny")).backbone, path)
    return path


@pytest.fixture(scope="module")
def frames() -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    return [policy_contract(preset("tiny")).backbone.sample_inputs(rng) for _ in range(3)]


# --- histogram and ranges


@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_histogram_loses_no_number_and_keeps_each_in_its_bin(parts: list[list[float]]) -> None:
    histogram = MagnitudeHistogram(num_bins=16)
    for part in parts:
        histogram.add(np.array(part, np.float32))
    magnitudes = np.abs(np.concatenate([np.array(part, np.float32) for part in parts]))
    assert histogram.counts.sum() == magnitudes.size
    assert histogram.peak == magnitudes.max()
    if histogram.peak:
        assert histogram.edges[-1] >= histogram.peak * (1 - 1e-6)
        for upper in range(0, 16, 4):
            below = int(histogram.counts[: upper + 1].sum())
            edge = histogram.edges[upper]
            assert (magnitudes < edge * (1 - 1e-6)).sum() <= below <= (magnitudes <= edge * (1 + 1e-6)).sum()


def test_a_percentile_leaves_out_the_share_it_names() -> None:
    histogram = MagnitudeHistogram()
    x = np.linspace(-1, 1, 100_001, dtype=np.float32)
    histogram.add(x)
    assert choose_magnitude(histogram, "percentile", percentile=99.0) == pytest.approx(0.99, abs=1e-3)
    assert choose_magnitude(histogram, "percentile", percentile=100.0) == histogram.peak
    assert choose_magnitude(histogram, "min-max") == np.float32(1.0)


def test_mse_finds_the_range_that_a_search_over_the_numbers_finds() -> None:
    x = np.random.default_rng(0).standard_t(4, 50_000).astype(np.float32)
    histogram = MagnitudeHistogram()
    histogram.add(x)
    chosen = choose_magnitude(histogram, "mse")

    def error(magnitude: float) -> float:
        step = magnitude / 127
        return float(np.square(np.clip(np.rint(x / step), -127, 127) * step - x).mean())

    best = min(error(float(histogram.peak) * share) for share in np.linspace(0.05, 1, 96))
    assert error(float(chosen)) <= 1.05 * best
    assert error(float(chosen)) < 0.9 * error(float(histogram.peak))


def test_a_tensor_of_zeros_has_a_step_of_one() -> None:
    histogram = MagnitudeHistogram()
    histogram.add(np.zeros((4, 4), np.float32))
    assert [scale_from_amax(choose_magnitude(histogram, method)) for method in ("min-max", "percentile", "mse")] == [1.0] * 3


# --- rounding


def test_compensated_rounding_keeps_the_output_where_the_nearest_does_not() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, 12)) @ rng.normal(size=(12, 64))).astype(np.float32)  # 12 ways to vary, 64 channels
    weight = rng.normal(size=(64, 32)).astype(np.float32)
    covariance = (x.T @ x / len(x)).astype(np.float32)
    errors = []
    for levels, steps in (round_nearest(weight), round_compensated(weight, covariance, 1e-3)):
        assert levels.dtype == np.int8
        assert np.abs(levels).max() <= 127
        errors.append(np.abs(x @ (levels * steps) - x @ weight).mean())
    assert errors[1] < 0.3 * errors[0]


def test_compensated_rounding_of_independent_channels_is_the_nearest() -> None:
    weight = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    plain, compensated = round_nearest(weight), round_compensated(weight, np.eye(300, dtype=np.float32), 0.01)
    np.testing.assert_array_equal(plain[0], compensated[0])
    np.testing.assert_array_equal(plain[1], compensated[1])


# --- observation


def test_channels_are_observed_as_they_are(backbone: Path, frames: list[dict[str, Array]]) -> None:
    matmul = quantizable_matmuls(read_graph(backbone).graph, ())[0]
    seen: list[Array] = []

    class Keep:
        def add(self, rows: Array) -> None:
            seen.append(rows)

    statistics = ChannelStatistics(matmul.num_channels)
    observe(backbone, {str(matmul.source.name): statistics}, frames)
    observe(backbone, {str(matmul.source.name): Keep()}, frames)
    rows = np.concatenate(seen)
    np.testing.assert_array_equal(statistics.low, rows.min(axis=0))
    np.testing.assert_array_equal(statistics.high, rows.max(axis=0))
    largest, rounding = float(np.abs(rows).max()), fp32_tolerance(len(rows))
    np.testing.assert_allclose(statistics.mean, rows.mean(axis=0), rtol=0, atol=rounding * largest)
    np.testing.assert_allclose(statistics.variance, rows.var(axis=0), rtol=0, atol=rounding * largest**2)
    centre, scale = rows.mean(axis=0) + 0.1, np.full(rows.shape[1], 2.0, np.float32)
    rounded = RoundedInput(centre, scale, statistics.mean, with_histogram=True, with_covariance=True)
    for part in seen:
        rounded.add(part)
    np.testing.assert_allclose(rounded.covariance, np.cov(rows.T, bias=True) / 4, rtol=0, atol=rounding * largest**2)
    assert rounded.histogram.peak == np.abs((rows - centre) / scale).max()


def test_covariances_that_do_not_fit_together_are_observed_one_after_the_other() -> None:
    channels = {"a": 100, "b": 100, "c": 50, "d": 1000, "e": 10}
    groups = group_by_memory(channels, limit_bytes=80_000)
    assert groups == [["a", "b"], ["c"], ["d"], ["e"]]
    assert group_by_memory(channels) == [["a", "b", "c", "d", "e"]]


# --- folding


def normalised_matmuls(*, with_bias: bool, norm: str) -> onnx.ModelProto:
    """x -> normalisation -> two MatMuls with a weight, the second a Gemm-like MatMul followed by a bias."""
    rng = np.random.default_rng(1)
    arrays = {
        "gain": rng.uniform(0.5, 2, 8),
        "shift": rng.normal(size=8),
        "one": rng.normal(size=(8, 6)),
        "two": rng.normal(size=(8, 6)),
        "bias": rng.normal(size=6),
    }
    first = (
        helper.make_node("LayerNormalization", ["x", "gain", "shift"] if with_bias else ["x", "gain"], ["n"], name="norm")
        if norm == "layer"
        else helper.make_node("Mul", ["x", "gain"], ["n"], name="norm")
    )
    nodes = [
        first,
        helper.make_node("MatMul", ["n", "one"], ["a"], name="first"),
        helper.make_node("MatMul", ["n", "two"], ["b"], name="second"),
        helper.make_node("Add", ["b", "bias"], ["c"], name="with_bias"),
        helper.make_node("Add", ["a", "c"], ["y"], name="sum"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 5, size]) for name, size in (("x", 8), ("y", 6))]
    initializers = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    inner = [helper.make_tensor_value_info("n", TensorProto.FLOAT, [1, 5, 8])]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], initializers, value_info=inner)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(("norm", "with_bias"), [("layer", True), ("layer", False), ("rms", False)])
@pytest.mark.parametrize("smooth_quant", [0.5, "search"])
def test_folding_alone_leaves_the_output_as_it_was(norm: str, with_bias: bool, smooth_quant: Any, tmp_path: Path) -> None:
    model = ir.serde.deserialize_model(normalised_matmuls(with_bias=with_bias, norm=norm))
    x = np.random.default_rng(0).normal(size=(1, 5, 8)).astype(np.float32) * np.logspace(-1, 1, 8, dtype=np.float32)
    write_graph(model, tmp_path / "before.onnx")
    value = next(node for node in model.graph if node.name == "norm").outputs[0]
    statistics = ChannelStatistics(8)
    observe(tmp_path / "before.onnx", {"n": statistics}, [{"x": x}])
    weights = [model.graph.initializers[name].const_value.numpy() for name in ("one", "two")]  # type: ignore[union-attr]
    balance = balance_input(value, statistics, weights, Int8Options(smooth_quant=smooth_quant, centre=norm == "layer"))
    assert balance.gain is not None
    assert not (balance.scale == 1).all()
    assert balance.is_absorbed == (norm == "layer")
    readers = [use.node for use in value.uses()]
    for node in readers:
        rewrite_float_reader(model.graph, node, balance)
    read = apply_balance(model.graph, value, balance)
    write_graph(model, tmp_path / "after.onnx")
    # a norm of 8 numbers, a MatMul over them, two sums
    assert_same_in_fp32(run(tmp_path / "after.onnx", {"x": x}), run(tmp_path / "before.onnx", {"x": x}), 3 * 8)
    balanced = ChannelStatistics(8)
    observe(tmp_path / "after.onnx", {str(read.name): balanced}, [{"x": x}])
    peak = max(-balanced.low.min(), balanced.high.max())
    assert peak == pytest.approx(float(balance.peak(statistics.low, statistics.high)), rel=1e-5)


def test_a_gain_that_others_read_too_absorbs_nothing() -> None:
    proto = normalised_matmuls(with_bias=True, norm="layer")
    proto.graph.node[-1].input[0] = "a"
    model = ir.serde.deserialize_model(proto)
    value = next(node for node in model.graph if node.name == "norm").outputs[0]
    assert find_gain(value) is not None
    model.graph.append(ir.node("Relu", [value], name="other"))
    assert find_gain(value) is None


def test_folding_every_norm_of_a_backbone_leaves_its_feature(
    backbone: Path, frames: list[dict[str, Array]], tmp_path: Path
) -> None:
    model = read_graph(backbone)
    matmuls = quantizable_matmuls(model.graph, ())
    channels = {str(matmul.source.name): matmul.num_channels for matmul in matmuls}
    statistics = {name: ChannelStatistics(count) for name, count in channels.items()}
    observe(backbone, statistics, frames)
    values = {str(matmul.source.name): matmul.source for matmul in matmuls}
    folded = 0
    for name, value in values.items():
        weights = [matmul.weight.const_value.numpy() for matmul in matmuls if matmul.source is value]  # type: ignore[union-attr]
        balance = balance_input(value, statistics[name], weights, Int8Options(smooth_quant=0.7))
        if balance.gain is None:
            continue
        for node in [use.node for use in value.uses()]:
            rewrite_float_reader(model.graph, node, balance)
        apply_balance(model.graph, value, balance)
        folded += 1
    assert folded >= 8
    write_graph(model, tmp_path / "folded.onnx")
    for frame in frames:
        assert_same_in_fp32(run(tmp_path / "folded.onnx", frame), run(backbone, frame), TERMS)


# --- the whole graph


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, frames: list[dict[str, Array]]) -> None:
        self.frames = iter(frames)

    def get_next(self) -> dict[str, Array] | None:
        return next(self.frames, None)


def scales_and_weights(path: Path) -> dict[str, tuple[Array, Array, Array]]:
    """Name of a MatMul -> scale of its input, int8 weights, scales of its outputs."""
    model = onnx.load(path)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in producers:
            weight = producers[node.input[1]]
            if weight.op_type == "DequantizeLinear" and weight.input[0] in arrays:
                activation = producers[node.input[0]]
                found[node.name] = (arrays[activation.input[1]], arrays[weight.input[0]], arrays[weight.input[1]])
    return found


@pytest.mark.filterwarnings("ignore")
def test_plain_ranges_and_rounding_are_those_of_onnxruntime_bit_for_bit(
    backbone: Path, frames: list[dict[str, Array]], tmp_path: Path
) -> None:
    names = [matmul.name for matmul in quantizable_matmuls(read_graph(backbone).graph, ())]
    assert quantize_int8(backbone, tmp_path / "own.onnx", iter(frames), options=PLAIN) == len(names)
    quantize_static(
        backbone,
        tmp_path / "theirs.onnx",
        _Reader(frames),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_quantize=names,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "MatMulConstBOnly": True,
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
        },
    )
    own, theirs = scales_and_weights(tmp_path / "own.onnx"), scales_and_weights(tmp_path / "theirs.onnx")
    assert own.keys() == theirs.keys() == set(names)
    for name in names:
        for mine, other in zip(own[name], theirs[name], strict=True):
            np.testing.assert_array_equal(mine, other, err_msg=name)
            assert mine.dtype == other.dtype


@pytest.mark.parametrize("activation_type", ["int8", "uint8"])
@pytest.mark.parametrize("plain", [True, False])
def test_every_matmul_has_its_own_pair_and_an_integer_kernel(
    backbone: Path, frames: list[dict[str, Array]], plain: bool, activation_type: Any, tmp_path: Path
) -> None:
    path = tmp_path / "int8.onnx"
    options = replace(PLAIN if plain else Int8Options(), activation_type=activation_type)
    count = quantize_int8(backbone, path, frames, options=options)
    require_integer_kernels(path, num_expected=count)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    readers = [name for node in model.graph.node for name in node.input]
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(pairs) == count
    for node in pairs:
        assert readers.count(node.output[0]) == 1
        assert arrays[node.input[2]] == (128 if activation_type == "uint8" else 0)
        assert arrays[node.input[2]].dtype == np.dtype(activation_type)
    assert not [name for name in arrays if name not in readers], "weights that nobody reads"


def test_uint8_is_the_same_arithmetic(backbone: Path, frames: list[dict[str, Array]], tmp_path: Path) -> None:
    features = []
    for activation_type in ("int8", "uint8"):
        path = tmp_path / f"{activation_type}.onnx"
        quantize_int8(backbone, path, frames, options=Int8Options(activation_type=activation_type))
        features.append(run(path, frames[0]))
    np.testing.assert_allclose(features[0], features[1], atol=2e-2)


def test_every_step_of_the_default_brings_the_feature_nearer(
    backbone: Path, frames: list[dict[str, Array]], tmp_path: Path
) -> None:
    exact = np.stack([run(backbone, frame) for frame in frames])
    errors = {}
    for name, options in {
        "plain": PLAIN,
        "compensated": Int8Options(smooth_quant=None, centre=False),
        "default": Int8Options(),
    }.items():
        quantize_int8(backbone, tmp_path / "int8.onnx", frames, options=options)
        feature = np.stack([run(tmp_path / "int8.onnx", frame) for frame in frames])
        errors[name] = float(np.sqrt(np.square(feature - exact).mean() / np.square(exact).mean()))
    assert errors["default"] < 0.8 * errors["plain"], errors
    assert errors["compensated"] < errors["plain"], errors


def test_weights_beside_the_graph_stay_beside_it_and_give_the_same_numbers(
    backbone: Path, frames: list[dict[str, Array]], tmp_path: Path
) -> None:
    outside = tmp_path / "outside" / "backbone.onnx"
    write_graph(read_graph(backbone), outside, inline_limit_bytes=0)
    quantize_int8(backbone, tmp_path / "inside.onnx", frames)
    expected = scales_and_weights(tmp_path / "inside.onnx")
    quantize_int8(outside, outside, frames)
    assert sorted(path.name for path in outside.parent.iterdir()) == ["backbone.onnx", "backbone.onnx.data"]
    for name, arrays in scales_and_weights(outside).items():
        np.testing.assert_allclose(arrays[0], expected[name][0], rtol=fp32_tolerance(TERMS))
        assert np.abs(arrays[1].astype(int) - expected[name][1]).max() <= 1
    np.testing.assert_allclose(run(outside, frames[0]), run(tmp_path / "inside.onnx", frames[0]), atol=0.05)


def test_what_stays_in_float_is_named_by_block_module_or_pattern(
    backbone: Path, frames: list[dict[str, Array]], tmp_path: Path
) -> None:
    graph = read_graph(backbone).graph
    everything = quantizable_matmuls(graph, ())
    kept = {matmul.module for matmul in everything} - {matmul.module for matmul in quantizable_matmuls(graph)}
    assert kept
    assert all(".attention.to_" in module for module in kept)
    assert {module.split(".")[0] for module in kept} == {"resampler", "decoder"}
    assert len(quantizable_matmuls(graph, ("vision.blocks.0.qkv",))) == len(everything) - 1
    with raises(ConfigError, "keep_float", got="'vision.block.0'", expected="...did you mean 'vision.blocks.0'..."):
        quantizable_matmuls(graph, ("vision.block.0",))
    quantize_int8(backbone, tmp_path / "int8.onnx", frames, keep_float=None)
    blocks = effective_precisions(tmp_path / "int8.onnx")
    assert blocks["vision.blocks.0"].kind == "int8"
    assert blocks["decoder.layers.0.cross_attention"].matmuls == {"int8": 2, "fp32": 4}


def test_nothing_is_calibrated_on_no_frame(backbone: Path, tmp_path: Path) -> None:
    with raises(DatasetError, "calibration", got="no frame", expected="at least one"):
        quantize_int8(backbone, tmp_path / "int8.onnx", [])
    assert not list(tmp_path.iterdir())


def test_options_without_a_meaning_are_refused() -> None:
    with raises(ConfigError, "ranges", got="'minmax'", expected="...min-max..."):
        Int8Options(ranges="minmax")  # type: ignore[arg-type]
    with raises(ConfigError, "percentile", got=12, expected="50 to 100"):
        Int8Options(percentile=12)
    with raises(ConfigError, "smooth_quant", got="1.5", expected="0 to 1"):
        Int8Options(smooth_quant=1.5)
    with raises(ConfigError, "smooth_quant", got="'serch'", expected="a number from 0 to 1 or ...search..."):
        parse_smooth_quant("serch")
    assert [parse_smooth_quant(text) for text in ("off", "search", "0.25")] == [None, "search", 0.25]
    assert Int8Options().describe().startswith("min-max, symmetric, per-tensor activations, per-channel weights, centred")
