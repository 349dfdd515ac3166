"""Nothing that is exported breaks a rule of the parsers on Jetson boards, whose libraries are not here."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rfedge.config import head_of_kind, preset
from rfedge.contract import policy_contract
from rfedge.export.passes.graph_files import read_graph
from rfedge.export.passes.standard import apply_passes, head_passes
from rfedge.export.precisions.half_storage import store_half
from rfedge.export.tensorrt.engine_form import default_islands
from rfedge.export.tensorrt.prepare import prepare_graph
from rfedge.export.trace import trace_backbone, trace_head
from rfedge.model import build_policy
from tests.export.engine_blocks import DECODERS, KINDS, write_block, write_form
from tests.export.float_graphs import make_bf16, make_fp16
from tests.export.parser_rules import PARSERS, broken_rules
from tests.export.tensorrt_bundles import small_graph

FORMS = ("fp32", "fp16", "bf16", "int8", "int8-weight", "int4")


def assert_parses(path: Path, *, floats: bool) -> None:
    """Check the graph in its own types and, unless `floats` says that these are asked for, with fp16."""
    for islands in (None,) if floats else (None, default_islands(read_graph(path))):
        graph = prepare_graph(path, islands=islands)
        for version, rules in PARSERS.items():
            assert broken_rules(graph, rules, path.parent) == [], version


@pytest.mark.parametrize("kind", KINDS)
def test_every_block_in_every_form_keeps_to_the_rules(kind: str, tmp_path: Path) -> None:
    contract = write_block(kind, tmp_path / "fp32.onnx", divide=8)
    for form in FORMS:
        path = tmp_path / f"{form}.onnx"
        if form in ("fp16", "bf16"):
            (make_fp16 if form == "fp16" else make_bf16)(tmp_path / "fp32.onnx", path)
        elif form != "fp32":
            write_form(tmp_path / "fp32.onnx", path, form, contract)
        assert_parses(path, floats=form == "bf16")


SLOW = [pytest.param(change, marks=pytest.mark.slow) for change in ("history", *DECODERS, "two_way")]


@pytest.mark.parametrize("change", ["none", *SLOW])
def test_every_member_of_the_family_keeps_to_the_rules(change: str, tmp_path: Path) -> None:
    """From camera bytes to the feature, and the head."""
    config = preset("tiny")
    update: dict[str, Any] = {"proprioception": True}
    if change in DECODERS:
        kept = {"width": 64, "layers": 1, "heads": 2, "vocab_size": 1024, "text_length": 16, "cross_attention_heads": 2}
        kept |= {"cross_attention_head_size": 32, "gate_init": 1.0, "cross_attention_every": 1}
        decoder = preset(DECODERS[change]).decoder
        kept |= {
            name: 128 if name == "mlp_width" else 2 for name in ("mlp_width", "key_value_heads") if hasattr(decoder, name)
        }
        update = {"decoder": type(decoder).model_validate({**decoder.model_dump(), **kept})}
    elif change == "history":
        update |= {"media_frames": 3, "fusion": "pre", "pooling": "average", "head": head_of_kind("mlp", config.head)}
    elif change == "two_way":
        update |= {"fusion": "two_way", "head": head_of_kind("gpt", config.head)}
    config = type(config).model_validate({**config.model_dump(), **{
        name: value.model_dump() if hasattr(value, "model_dump") else value for name, value in update.items()}})  # fmt: skip
    contract, policy = policy_contract(config), build_policy(config, seed=0)
    trace_backbone(policy, contract.backbone, tmp_path / "backbone.onnx")
    apply_passes(tmp_path / "backbone.onnx", tmp_path / "backbone.onnx")
    assert_parses(tmp_path / "backbone.onnx", floats=False)
    trace_head(policy, contract.head, tmp_path / "head.onnx")
    apply_passes(tmp_path / "head.onnx", tmp_path / "head.onnx", head_passes())
    store_half(tmp_path / "head.onnx", tmp_path / "half.onnx")
    assert_parses(tmp_path / "half.onnx", floats=False)


def test_what_a_parser_refuses_is_found() -> None:
    scale = numpy_helper.from_array(np.array(0.0, np.float32), "scale")
    zero = numpy_helper.from_array(np.array([0, 3], np.int8), "zero")
    half = numpy_helper.from_array(np.ones(64, np.float16), "half")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["d"], name="dequantize"),
        helper.make_node("Add", ["d", "half"], ["sum"], name="add"),
        helper.make_node("Hardmax", ["sum"], ["hard"], name="hardmax"),
        helper.make_node("Gelu", ["hard"], ["y"], name="gelu", domain="com.microsoft"),
    ]
    model = small_graph(nodes, [scale, zero, half], width=64)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert model.opset_import[0].version == 21
    assert broken_rules(model, PARSERS["10.3"]) == [
        "opset 21 is not from 9 to 20",
        "quantize (QuantizeLinear) has a scale that is not positive",
        "quantize (QuantizeLinear) has a zero-point that is not 0",
        "quantize (QuantizeLinear) has 2 zero-points for 1 scales",
        "dequantize (DequantizeLinear) has a scale that is not positive",
        "add (Add) reads FLOAT and FLOAT16",
        "hardmax (Hardmax) is not in the table of operators",
        "gelu (Gelu) is of domain com.microsoft",
    ]


def test_int4_in_blocks_is_the_one_reason_to_leave_the_documented_opset() -> None:
    weight = helper.make_tensor("weight", TensorProto.INT4, [64, 64], np.zeros(64 * 64).tolist())
    scales = numpy_helper.from_array(np.ones((2, 64), np.float32), "scales")
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scales"], ["w"], name="dequantize", axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul"),
    ]
    model = small_graph(nodes, [weight, scales], width=64)
    assert broken_rules(model, PARSERS["10.3"]) == []
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((64, 64), np.int8), "weight"))
    assert broken_rules(model, PARSERS["10.3"]) == ["opset 21 is not from 9 to 20"]
    onnx.checker.check_model(model)
