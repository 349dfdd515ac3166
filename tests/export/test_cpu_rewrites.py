"""What the CPU form writes in another way, against the graph before: bit for bit, or within flips with a derived bound."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from rfedge.bundle import int8_kernels
from rfedge.export.int8.balance import balance_input
from rfedge.export.int8.observe import ChannelStatistics
from rfedge.export.int8.options import Int8Options
from rfedge.export.int8.ranges import scale_from_amax
from rfedge.export.passes.fold_centres import CentreByZeroPoint, FoldCentres
from rfedge.export.passes.fuse_attention import FuseAttention
from rfedge.export.passes.graph_pass import GraphPass
from rfedge.export.passes.graph_queries import constant_array
from rfedge.export.passes.quick_gelu import PlainQuickGelu
from rfedge.export.passes.slim import infer_shapes
from rfedge.export.passes.split_weights import SplitWeights
from rfedge.export.precisions.cpu_int8 import lower_int8
from rfedge.export.precisions.row_int8 import LowerRows, RowMatMul, store_rows
from rfedge.export.quantize import quantize_int8
from tests.export.float_graphs import Array, draw, graph_of, op_types, passed_policy, relative_rms, run
from tests.tolerances import assert_same_in_fp32, fp32_tolerance

node = helper.make_node
BATCH, TOKENS, KEYS, HEADS = 2, 5, 7, 3


def changed(graph_pass: GraphPass, model: ir.Model) -> int:
    """Run the pass twice, the second time in vain; return how much it changed."""
    graph_pass(model)
    again = type(graph_pass)()
    again(model)
    assert again.changes == ()
    return len(graph_pass.changes)


# Attention


def attention(width: int, *, scales: str, bias: bool, constant_queries: bool) -> tuple[ir.Model, dict[str, Array]]:
    rng = np.random.default_rng(0)
    channels = HEADS * width
    scale = np.full(1, width**-0.5, np.float32)
    constants = {"heads": np.array([0, 0, HEADS, width]), "together": np.array([BATCH, TOKENS, channels]), "scale": scale}
    inputs = {"k": (BATCH, KEYS, channels), "v": (BATCH, KEYS, channels)}
    nodes = []
    if constant_queries:
        constants["qt"] = draw(rng, BATCH, HEADS, TOKENS, width)
    else:
        inputs["q"] = (BATCH, TOKENS, channels)
        nodes += [node("Reshape", ["q", "heads"], ["qh"]), node("Transpose", ["qh"], ["qt"], perm=[0, 2, 1, 3])]
    for name in ("k", "v"):
        nodes.append(node("Reshape", [name, "heads"], [f"{name}h"]))
        nodes.append(node("Transpose", [f"{name}h"], [f"{name}t"], perm=[0, 2, 1, 3]))
    nodes.append(node("Transpose", ["kt"], ["kc"], perm=[0, 1, 3, 2]))
    left, right = "qt", "kc"
    if scales == "q":
        nodes.append(node("Mul", ["qt", "scale"], ["qs"]))
        left = "qs"
    else:
        nodes.append(node("Mul", ["kc", "scale"], ["ks"]))
        right = "ks"
    nodes.append(node("MatMul", [left, right], ["logits"]))
    last = "logits"
    if bias:
        inputs["bias"], last = (HEADS, TOKENS, KEYS), "biased"
        nodes.append(node("Add", ["logits", "bias"], ["biased"]))
    nodes += [
        node("Softmax", [last], ["weights"], axis=-1),
        node("MatMul", ["weights", "vt"], ["mixed"]),
        node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        node("Reshape", ["back", "together"], ["y"]),
    ]
    return graph_of(nodes, constants, inputs, ["y"]), {name: draw(rng, *shape) for name, shape in inputs.items()}


@pytest.mark.parametrize("width", [16, 64, 12])
@pytest.mark.parametrize("scales", ["q", "k"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("constant_queries", [True, False])
def test_attention_becomes_one_operator(width: int, scales: str, bias: bool, constant_queries: bool) -> None:
    model, inputs = attention(width, scales=scales, bias=bias, constant_queries=constant_queries)
    (expected,) = run(model, inputs)
    assert changed(FuseAttention(), model) == 1
    assert op_types(model) == [*(["Unsqueeze"] if bias else []), "Attention"]
    (actual,) = run(model, inputs)
    if width in (16, 64):  # the scale is a power of two
        np.testing.assert_array_equal(actual, expected)
    else:
        assert_same_in_fp32(actual, expected, width + KEYS)


def test_a_bias_of_keys_gets_a_row_for_each_token() -> None:
    """The sizes of merged tokens: (batch, 1, 1, keys), the same for all heads and tokens."""
    model, inputs = attention(16, scales="q", bias=True, constant_queries=False)
    (bias,) = (value for value in model.graph.inputs if value.name == "bias")
    bias.shape = ir.Shape([BATCH, 1, 1, KEYS])
    output, known = model.graph.outputs[0], model.graph.outputs[0].shape
    output.shape = ir.Shape([BATCH, "tokens", HEADS * 16])
    assert changed(FuseAttention(), model) == 0, "the rows of a free number of tokens cannot be counted"
    output.shape = known
    inputs["bias"] = draw(np.random.default_rng(1), BATCH, 1, 1, KEYS)
    (expected,) = run(model, inputs)
    assert changed(FuseAttention(), model) == 1
    assert op_types(model) == ["Expand", "Attention"]
    np.testing.assert_array_equal(run(model, inputs)[0], expected)


def test_an_attention_whose_weights_are_read_elsewhere_stays() -> None:
    model, _ = attention(16, scales="q", bias=False, constant_queries=False)
    model.graph.outputs.append(next(item for item in model.graph if item.op_type == "Softmax").outputs[0])
    before = op_types(model)
    assert changed(FuseAttention(), model) == 0
    assert op_types(model) == before


# Centres


@pytest.mark.parametrize("producer", ["kernel", "Add"])
def test_a_centre_after_attention_goes_into_the_bias_of_its_values(producer: str) -> None:
    rng = np.random.default_rng(3)
    channels = 2 * HEADS
    constants = {"bias": draw(rng, channels), "centre": draw(rng, channels), "weight": draw(rng, channels, channels)}
    made = [node("MatMul", ["x", "weight"], ["plain"]), node("Add", ["plain", "bias"], ["v"])]
    if producer == "kernel":
        constants |= {
            "weight": rng.integers(-127, 128, (channels, channels), np.int8),
            "step": np.float32(0.03),
            "weight_steps": rng.uniform(0.001, 0.004, channels).astype(np.float32),
            "zero": np.uint8(128),
            "int8_zero": np.int8(0),
        }
        inputs = ["levels", "weight", "step", "weight_steps", "zero", "int8_zero", "bias"]
        made = [
            node("QuantizeLinear", ["x", "step", "zero"], ["levels"]),
            node("MatMulIntegerToFloat", inputs, ["v"], domain="com.microsoft"),
        ]
    nodes = [
        *made,
        node("Attention", ["q", "k", "v"], ["mixed"], q_num_heads=HEADS, kv_num_heads=HEADS, scale=0.5),
        node("Sub", ["mixed", "centre"], ["centred"]),
        node("Neg", ["centred"], ["y"]),
    ]
    shapes = {"q": (BATCH, TOKENS, channels), "k": (BATCH, KEYS, channels), "x": (BATCH, KEYS, channels)}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("y", 1, None)],
        [ir.to_proto(ir.tensor(array, name=name)) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    arrays = {name: draw(rng, *shape) for name, shape in shapes.items()}
    (expected,) = run(model, arrays)
    assert changed(FoldCentres(), model) == 1
    assert "Sub" not in op_types(model)
    assert_same_in_fp32(run(model, arrays)[0], expected, 2 + channels + KEYS)


@pytest.mark.parametrize(("steps", "folds"), [(100, True), (-3, True), (0.5, False), (200, False)])
def test_one_centre_of_whole_steps_is_a_zero_point(steps: float, folds: bool) -> None:
    step = np.float32(0.02)
    nodes = [
        node("Sub", ["x", "centre"], ["centred"]),
        node("QuantizeLinear", ["centred", "step", "zero"], ["levels"]),
        node("DequantizeLinear", ["levels", "step", "zero"], ["y"]),
    ]
    constants = {"centre": np.full(8, steps * step, np.float32), "step": step, "zero": np.uint8(128)}
    model = graph_of(nodes, constants, {"x": (4000, 8)}, ["y"])
    x = draw(np.random.default_rng(0), 4000, 8) * np.float32(2)
    (expected,) = run(model, {"x": x})
    assert changed(CentreByZeroPoint(), model) == folds
    assert ("Sub" in op_types(model)) is not folds
    levels = np.rint((run(model, {"x": x})[0] - expected) / step)
    assert np.abs(levels).max() <= 1
    assert (levels != 0).sum() <= max(2, 8 * levels.size * 2.0**-12)  # x / s within 2^-13 of a half, on either side


def test_channels_that_begin_alike_share_a_centre_of_whole_steps() -> None:
    rng = np.random.default_rng(4)
    rows = np.abs(draw(rng, 500, 16)) * rng.uniform(0.1, 5, 16).astype(np.float32) - np.float32(0.17)
    statistics = ChannelStatistics(16)
    statistics.add(rows)
    value = ir.Value(name="gelu")
    balance = balance_input(value, statistics, (), Int8Options())
    step = scale_from_amax(balance.peak(statistics.low, statistics.high))
    steps = balance.centre / step
    assert np.ptp(balance.centre) == 0
    assert abs(steps[0] - round(float(steps[0]))) < 2.0**-13
    assert step * 127 <= 1.02 * (rows.max() - rows.min()) / 2
    rows[:, 3] -= 7  # a channel of its own range keeps a centre of its own
    apart = ChannelStatistics(16)
    apart.add(rows)
    assert np.ptp(balance_input(value, apart, (), Int8Options()).centre) > 0


# QuickGelu

STEP, ROWS, INNER = 0.02, 400, 32


def gelu_between_kernels(*, centre: bool) -> tuple[ir.Model, dict[str, Array]]:
    """Return uint8 -> kernel -> x sigmoid(1.702 x) -> uint8, the second integers as the output."""
    rng = np.random.default_rng(1)
    kernel = ["x", "weight", "one", "weight_scale", "zero", "int8_zero", "bias"]
    constants = {
        "weight": rng.integers(-127, 128, (INNER, INNER), np.int8),
        "one": np.float32(0.03),
        "weight_scale": rng.uniform(0.001, 0.004, INNER).astype(np.float32),
        "zero": np.uint8(128),
        "int8_zero": np.int8(0),
        "bias": draw(rng, INNER),
        "alpha": np.float32(1.702),
        "centre": draw(rng, INNER) * np.float32(0.1),
        "step": np.float32(STEP),
    }
    nodes = [
        node("QuantizeLinear", ["float", "one", "zero"], ["x"]),
        node("MatMulIntegerToFloat", kernel, ["h"], domain="com.microsoft"),
        node("Mul", ["h", "alpha"], ["scaled"]),
        node("Sigmoid", ["scaled"], ["gate"]),
        node("Mul", ["h", "gate"], ["activated"]),
        *([node("Sub", ["activated", "centre"], ["centred"])] if centre else []),
        node("QuantizeLinear", ["centred" if centre else "activated", "step", "zero"], ["levels"]),
        node("DequantizeLinear", ["levels", "step", "zero"], ["y"]),
    ]
    if not centre:
        del constants["centre"]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("float", 1, (ROWS, INNER))],
        [helper.make_tensor_value_info("y", 1, (ROWS, INNER))],
        [ir.to_proto(ir.tensor(array, name=name)) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=9))
    infer_shapes(model)
    return model, {"float": draw(rng, ROWS, INNER)}


@pytest.mark.parametrize("centre", [True, False])
def test_a_plain_quick_gelu_gives_the_same_integers_but_for_flips(centre: bool) -> None:
    model, inputs = gelu_between_kernels(centre=centre)
    (expected,) = run(model, inputs)
    assert changed(PlainQuickGelu(), model) == 1
    assert op_types(model)[2] == "QuickGelu"
    assert not {"Sigmoid", "Mul"} & set(op_types(model))
    (actual,) = run(model, inputs)
    levels = np.rint(actual / (STEP * 1.0) - expected / STEP).astype(int)
    assert np.abs(levels).max() <= 1
    # |x / s| of 128 and less is moved by 2^-14 of a step and less, so of evenly spread halves at most 2^-13 are crossed.
    assert (levels != 0).sum() <= max(2, 8 * levels.size * 2.0**-13)


def test_an_activation_that_is_also_read_in_float_keeps_its_factor() -> None:
    model, _ = gelu_between_kernels(centre=True)
    activated = next(item for item in model.graph if item.op_type == "Sub").inputs[0]
    assert activated is not None
    model.graph.outputs.append(activated)
    assert changed(PlainQuickGelu(), model) == 0


# Packed projections


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(8, 8, 8), (16, 4)])
def test_a_packed_projection_becomes_one_matmul_a_part(bias: bool, sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    constants = {"weight": draw(rng, 8, sum(sizes)), "bias": draw(rng, sum(sizes)), "sizes": np.array(sizes)}
    if not bias:
        del constants["bias"]
    outputs = [f"y{index}" for index in range(len(sizes))]
    nodes = [
        node("MatMul", ["x", "weight"], ["packed"]),
        *([node("Add", ["packed", "bias"], ["biased"])] if bias else []),
        node("Split", ["biased" if bias else "packed", "sizes"], [f"{name}s" for name in outputs], axis=-1),
        *(node("Neg", [f"{name}s"], [name]) for name in outputs),
    ]
    model = graph_of(nodes, constants, {"x": (2, 3, 8)}, outputs)
    inputs = {"x": draw(rng, 2, 3, 8)}
    expected = run(model, inputs)
    assert changed(SplitWeights(), model) == 1
    assert op_types(model).count("MatMul") == len(sizes)
    assert "Split" not in op_types(model)
    for actual, before in zip(run(model, inputs), expected, strict=True):
        np.testing.assert_array_equal(actual, before)


def test_parts_are_rounded_to_the_levels_of_the_packed_matrix(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    traced = passed_policy(tmp_path_factory)
    forms = {}
    for split in (True, False):
        path = tmp_path / f"{split}.onnx"
        quantize_int8(traced.backbone, path, [traced.inputs], options=Int8Options(split_packed=split))
        forms[split] = ir.load(path).graph
    packed = {
        str(value.name): array
        for value in forms[False].initializers.values()
        if (array := constant_array(value)) is not None and array.dtype == np.int8 and array.ndim == 2
    }
    parts: dict[str, list[Array]] = {}
    for value in forms[True].initializers.values():
        array = constant_array(value)
        if array is not None and array.dtype == np.int8 and array.ndim == 2:
            name = str(value.name)
            stem = name.removesuffix("_quantized").rpartition("/")[0] + "_quantized" if name not in packed else name
            parts.setdefault(stem, []).append(array)
    assert packed.keys() == parts.keys()
    assert any(len(found) == 3 for found in parts.values())
    for name, array in packed.items():
        np.testing.assert_array_equal(np.concatenate(parts[name], axis=-1), array, err_msg=name)


def test_an_older_onnxruntime_runs_the_qdq_form_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = attention(16, scales="q", bias=False, constant_queries=False)
    ir.save(model, tmp_path / "long.onnx")
    changed(FuseAttention(), model)
    ir.save(model, tmp_path / "fused.onnx")
    assert int8_kernels.runs_cpu_form(tmp_path / "fused.onnx") is int8_kernels.knows_attention()
    monkeypatch.setattr(int8_kernels, "knows_attention", lambda: False)
    assert int8_kernels.runs_cpu_form(tmp_path / "long.onnx")
    assert not int8_kernels.runs_cpu_form(tmp_path / "fused.onnx")
    assert "fused.onnx: onnxruntime before 1.24 runs the bundle's slower Q/DQ graph" in caplog.text


# Query attention by row


def test_rows_of_zeros_and_of_any_size_are_rounded_by_their_own_scale() -> None:
    """Against numpy: every row is off by at most half a step of its own, times the weights."""
    rng = np.random.default_rng(5)
    weight = rng.integers(-127, 128, (INNER, 7), np.int8)
    row = RowMatMul(weight, np.full(7, 0.01, np.float32), draw(rng, INNER) * np.float32(0.1), draw(rng, 7))
    model = graph_of(
        [node("MatMul", ["x", "float"], ["product"]), node("Add", ["product", "bias"], ["y"])],
        {"float": weight * np.float32(0.01), "bias": draw(rng, 7)},
        {"x": (4, INNER)},
        ["y"],
    )
    x = draw(rng, 4, INNER) * np.float32([[1e-6], [1.0], [1e4], [0.0]])
    x[3] = row.centre
    constant = constant_array(model.graph.initializers["bias"])
    assert constant is not None
    matmul = next(item for item in model.graph if item.op_type == "MatMul")
    store_rows(model.graph, {str(matmul.name): row})
    (stored,) = run(model, {"x": x})
    assert changed_rows(model, {str(matmul.name): row}) == 1
    (actual,) = run(model, {"x": x})
    centred = (x - row.centre).astype(np.float64)
    assert row.bias is not None
    expected = x.astype(np.float64) @ (weight * 0.01) + row.bias + constant
    half_a_step = np.abs(centred).max(axis=1, keepdims=True) / 127 / 2
    bound = 1.001 * half_a_step * np.abs(weight * 0.01).sum(axis=0) + fp32_tolerance(INNER) * np.abs(expected).max()
    assert (np.abs(actual - expected) <= bound).all()
    np.testing.assert_allclose(actual[3], expected[3], rtol=1e-5)
    np.testing.assert_allclose(stored[1], expected[1], atol=0.02 * np.abs(expected[1]).max())


def changed_rows(model: ir.Model, rows: dict[str, RowMatMul]) -> int:
    first, again = LowerRows(rows), LowerRows(rows)
    first(model)
    again(model)
    assert again.changes == ()
    return len(first.changes)


def test_query_attention_is_quantized_by_row_in_the_cpu_form_alone(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    traced = passed_policy(tmp_path_factory)
    rows: dict[str, RowMatMul] = {}
    count = quantize_int8(traced.backbone, tmp_path / "qdq.onnx", [traced.inputs], keep_float=None, rows=rows)
    assert rows
    assert lower_int8(tmp_path / "qdq.onnx", tmp_path / "float.onnx") == count
    model = ir.load(tmp_path / "qdq.onnx")
    store_rows(model.graph, rows)
    ir.save(model, tmp_path / "stored.onnx")
    assert lower_int8(tmp_path / "stored.onnx", tmp_path / "rows.onnx", rows) == count + len(rows)
    (exact,) = run(traced.backbone, traced.inputs)
    errors = {name: relative_rms(run(tmp_path / f"{name}.onnx", traced.inputs)[0], exact) for name in ("float", "rows")}
    assert errors["float"] < 0.05
    assert errors["rows"] < errors["float"] + 0.03
    kernels = [item for item in ir.load(tmp_path / "rows.onnx").graph if item.op_type == "MatMulIntegerToFloat"]
    assert len(kernels) == count + len(rows)
