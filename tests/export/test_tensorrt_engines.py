"""Engines ahead of time, with the real builder and no GPU: sizes, what layers compute in, what is refused and how."""

import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from rfedge.bundle.artifact import hash_file, load_bundle
from rfedge.bundle.engines import find_engine
from rfedge.config import VisionConfig
from rfedge.errors import ConfigError, ExportError
from rfedge.export.quantize import quantize_int8
from rfedge.export.tensorrt.audit import StageAudit, audit_built
from rfedge.export.tensorrt.builder import BuiltEngine, build_engine
from rfedge.export.tensorrt.options import BuilderSettings
from rfedge.export.tensorrt.prepare import check_precisions, prepare_graph
from rfedge.model.vision import VisionBlock
from rfedge.nvidia.tensorrt import TensorRt
from tests.errors import raises
from tests.export.tensorrt_bundles import (
    PRECISIONS,
    build_ahead,
    device,
    load_rtx,
    small_contract,
    small_graph,
    write_tiny_bundles,
)


@pytest.fixture(scope="module")
def rtx() -> TensorRt:
    return load_rtx()


@pytest.fixture(scope="module")
def bundles(rtx: TensorRt, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_tiny_bundles(tmp_path_factory.mktemp("tensorrt"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tiny_is_built_ahead_of_time_in_the_precision_of_its_graph(
    bundles: dict[str, Path], rtx: TensorRt, precision: str
) -> None:
    sms = (86, 89) if precision == "int8" else (86,)
    results = build_ahead(bundles[precision], *sms, stage="backbone")
    assert [result.planned.key.target.sm for result in results] == list(sms)
    for result in results:
        folder, audit = result.planned.folder, result.audit
        assert sorted(file.name for file in folder.iterdir()) == ["audit.json", "backbone.plan", "engine.json"]
        assert audit.source == "builder's description of the engine"
        assert audit.missed == ()
        assert not audit.weights_grew
        computed = {matmul.module: matmul.computed for matmul in audit.matmuls}
        for name in ("vision.blocks.0.qkv", "resampler.layers.0.attention.to_kv", "decoder.layers.0.block.mlp_up"):
            assert computed[name] == precision
        if precision == "int8":
            floats = {matmul.block: matmul.reason for matmul in audit.matmuls if matmul.computed != "int8"}
            assert floats == {
                "preprocess_static": "camera resize: exact in float",
                "preprocess_gripper": "camera resize: exact in float",
                "vision": "no Q/DQ in the bundle: convolution of vision",
            }
        else:
            assert set(computed.values()) == {precision}
    opened = load_bundle(bundles[precision])
    plan, record = find_engine(opened, "backbone", device(86, rtx.version))
    assert plan == results[0].planned.folder / "backbone.plan"
    assert record.sha256 == hash_file(plan)


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "int8"])
def test_two_lengths_of_the_text_are_two_profiles_over_the_same_weights(
    bundles: dict[str, Path], rtx: TensorRt, precision: str
) -> None:
    one = build_ahead(bundles[precision], 120)[0]
    two = build_ahead(bundles[precision], 120, text_lengths=(8, 16))[0]
    assert one.record.text_lengths == (16,)
    assert two.record.text_lengths == (8, 16)
    assert "steps_text_mask 16/16/16 -> 8/8/8,16/16/16" in str(two.planned.reason)
    assert two.record.weights_bytes < 1.01 * one.record.weights_bytes, "profiles share the weights"
    assert one.record.size_bytes < two.record.size_bytes < 2 * one.record.size_bytes
    assert two.audit.precisions == one.audit.precisions
    assert two.audit.missed == ()
    assert len(two.audit.layers) == 2 * len(one.audit.layers)
    _, record = find_engine(load_bundle(bundles[precision]), "backbone", device(120, rtx.version))
    assert [record.choose_profile(tokens) for tokens in (1, 8, 9, 16)] == [(0, 8), (0, 8), (1, 16), (1, 16)]


def test_no_int8_matmul_of_a_bundle_is_left_to_the_builder_in_float(rtx: TensorRt, bundles: dict[str, Path]) -> None:
    """A packed q|k|v with a bias would be, which is why the export gives q, k and v a weight each."""
    opened = load_bundle(bundles["int8"])
    path = opened.path("backbone")
    graph = prepare_graph(path)
    built = build_engine(rtx, graph, path, opened.contract.backbone, rtx.ahead_of_time_target(86), BuilderSettings())
    assert audit_built(graph, built).missed == ()


@pytest.fixture(scope="module")
def vit_l(rtx: TensorRt, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[BuiltEngine, StageAudit]]:
    """One block of ViT-L/14 with random weights, as fp32 and int8 engines for SM86."""
    folder = tmp_path_factory.mktemp("vit_l")
    torch.manual_seed(0)
    block = VisionBlock(VisionConfig(image_size=224, patch_size=14, width=1024, layers=1, heads=16)).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside torch.export
        program = torch.onnx.export(
            block, (torch.randn(1, 257, 1024),), dynamo=True, input_names=["x"], output_names=["y"], opset_version=20,
            verbose=False,
        )  # fmt: skip
    program.save(str(folder / "fp32.onnx"))
    tokens = np.random.default_rng(0).standard_normal((1, 257, 1024)).astype(np.float32)
    assert quantize_int8(folder / "fp32.onnx", folder / "int8.onnx", [{"x": tokens}]) == 6, "q, k and v have a weight each"
    made = {}
    for precision in ("fp32", "int8"):
        path = folder / f"{precision}.onnx"
        graph = prepare_graph(path)
        built = build_engine(
            rtx, graph, path, small_contract(1024, tokens=257), rtx.ahead_of_time_target(86), BuilderSettings()
        )
        made[precision] = built, audit_built(graph, built)
    return made


def test_an_int8_vit_l_block_is_at_most_three_tenths_of_the_fp32_engine(
    vit_l: dict[str, tuple[BuiltEngine, StageAudit]],
) -> None:
    sizes = {name: found.plan_bytes for name, (_, found) in vit_l.items()}
    assert sizes["int8"] <= 0.3 * sizes["fp32"], sizes
    weights = {name: found.engine_weights_bytes for name, (_, found) in vit_l.items()}
    assert weights["int8"] < 0.26 * weights["fp32"], weights


def test_the_audit_lists_every_layer_that_is_not_int8_and_why(vit_l: dict[str, tuple[BuiltEngine, StageAudit]]) -> None:
    built, found = vit_l["int8"]
    assert found.precisions == {"int8": 6}, "q, k and v apart, out_proj, mlp_up, mlp_down"
    assert len(found.layers) >= 10
    assert {layer.name for layer in found.layers} <= {layer.name for layer in built.layers}
    assert all(bool(layer.reason) == (layer.precision != "int8") for layer in found.layers)
    reasons = " ".join(layer.reason for layer in found.layers)
    for part in ("attention MatMul of two activations", "softmax", "LayerNorm"):
        assert part in reasons
    whole, fp32 = vit_l["fp32"]
    assert fp32.precisions == {"fp32": 4}
    assert all(layer.reason for layer in fp32.layers)
    assert whole.weights_bytes > 50e6


def test_weights_in_a_file_beside_the_graph_reach_the_engine(
    rtx: TensorRt, bundles: dict[str, Path], tmp_path: Path
) -> None:
    model = onnx.load(bundles["int8"] / "backbone.onnx")
    onnx.save(model, tmp_path / "apart.onnx", save_as_external_data=True, location="apart.onnx.data", size_threshold=0)
    contract = load_bundle(bundles["int8"]).contract.backbone
    # wide layers have zero-points that are large enough to lie in that file too
    check_precisions(onnx.load(tmp_path / "apart.onnx", load_external_data=False), rtx.ahead_of_time_target(86), tmp_path)
    graph = prepare_graph(tmp_path / "apart.onnx")
    built = build_engine(rtx, graph, tmp_path / "apart.onnx", contract, rtx.ahead_of_time_target(86), BuilderSettings())
    inline = json.loads((build_ahead(bundles["int8"], stage="backbone")[0].planned.folder / "engine.json").read_bytes())
    assert built.weights_bytes == inline["stages"]["backbone"]["weights_bytes"] > 0
    assert audit_built(graph, built).precisions == inline["stages"]["backbone"]["precisions"]


def test_each_unsupported_precision_ends_with_its_reason(rtx: TensorRt, bundles: dict[str, Path]) -> None:
    for element_type, sm, name, expected in (
        (TensorProto.FLOAT8E4M3FN, 86, "fp8", "SM89 or newer for fp8"),
        (TensorProto.BFLOAT16, 75, "bf16", "SM80 or newer for bf16"),
        (TensorProto.INT4, 75, "int4", "SM80 or newer for int4"),
        (TensorProto.FLOAT4E2M1, 89, "fp4", "SM100 or newer for fp4"),
        (TensorProto.FLOAT8E5M2, 120, "fp8 (e5m2)", "fp32, fp16, bf16 or int8"),
    ):
        weight = helper.make_tensor("weight", element_type, [64, 64], np.zeros(64 * 64).tolist())
        node = helper.make_node("MatMul", ["x", "weight"], ["y"], name="MatMul")
        with raises(ExportError, got=f"{name} in weight weight", expected=expected):
            check_precisions(small_graph([node], [weight], width=64), rtx.ahead_of_time_target(sm))
    with raises(ConfigError, "ahead-of-time target", got="sm87", expected="one of sm75, sm80, sm86, ..."):
        build_ahead(bundles["fp32"], 87)


def test_quantizations_that_only_onnxruntime_knows_are_refused_by_node(rtx: TensorRt) -> None:
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "scale")
    zero_point = numpy_helper.from_array(np.array(128, np.uint8), "zero_point")
    quantize = helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"], name="quantize")
    dequantize = helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"], name="dequantize")
    model = small_graph([quantize, dequantize], [scale, zero_point], width=64)
    with raises(ExportError, got="uint8 at node quantize ...", expected="symmetric int8 with zero-point 0"):
        check_precisions(model, rtx.ahead_of_time_target(86))
    bits = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], name="bits", domain="com.microsoft")
    with raises(ExportError, got="com.microsoft.MatMulNBits at node bits (decoder.layers.7), int4 weights in..."):
        check_precisions(small_graph([bits], [], width=64), rtx.ahead_of_time_target(86))


def test_a_refused_layer_is_named_with_its_onnx_node_and_pytorch_module(rtx: TensorRt, tmp_path: Path) -> None:
    def fails(model: onnx.ModelProto, sm: int) -> str:
        with pytest.raises(ExportError) as caught:
            build_engine(
                rtx, model, tmp_path / "g.onnx", small_contract(64), rtx.ahead_of_time_target(sm), BuilderSettings()
            )
        return str(caught.value)

    # the parser: an operator that TensorRT does not have
    unknown = helper.make_node("Hardmax", ["x"], ["between"], name="node_hardmax")
    unheard = helper.make_node("BitShift", ["between", "between"], ["y"], name="node_shift", direction="LEFT")
    text = fails(small_graph([unknown, unheard], [], width=64), 86)
    assert text.startswith("graph g.onnx: got node node_shift (BitShift) of PyTorch module decoder.layers.7.mlp_up: ")
    # the builder: fp32 MatMuls do not exist for Turing in TensorRT for RTX
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "weight")
    matmul = helper.make_node("MatMul", ["x", "weight"], ["y"], name="node_matmul")
    text = fails(small_graph([matmul], [weight], width=64), 75)
    assert text.startswith(
        "engine of g.onnx for SM75: got node node_matmul (MatMul) of PyTorch module decoder.layers.7.mlp_up"
    )
    assert "FP32 GEMM is not supported" in text
    assert text.endswith("Export the bundle in a precision this GPU has, or build for another one.")
