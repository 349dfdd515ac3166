"""Lengths of the text that an engine is built for: what is asked, what is refused, and which profile a sentence takes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from rfedge.bundle.artifact import Bundle, load_bundle, write_bundle
from rfedge.bundle.engines import EngineKey, EngineRecord, EngineTarget
from rfedge.cli.app import app, main
from rfedge.config import head_of_kind
from rfedge.contract import policy_contract
from rfedge.errors import ConfigError, ContractError
from rfedge.export.tensorrt.audit import audit_built
from rfedge.export.tensorrt.builder import BuiltEngine
from rfedge.export.tensorrt.engine_layers import EngineLayer, Operand
from rfedge.export.tensorrt.options import BuilderSettings
from rfedge.export.tensorrt.profiles import check_text_lengths, parse_text_lengths, plan_profiles, text_lengths_of
from rfedge.language.instructions import write_instruction_table
from tests.errors import raises
from tests.export.tensorrt_bundles import load_rtx, small_graph
from tests.runtimes.handmade_bundle import write_handmade_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    write_handmade_bundle(tmp_path / "bundle")
    return load_bundle(tmp_path / "bundle")


def test_every_length_is_a_static_profile_and_the_head_has_one(bundle: Bundle) -> None:
    config = bundle.policy
    contract = bundle.contract
    assert check_text_lengths((), bundle) == (16,)
    assert check_text_lengths(parse_text_lengths("4, 16"), bundle) == (4, 16)
    profiles = plan_profiles(contract.backbone, (4, 16))
    assert profiles == tuple({"text_embedding": (n, n, n), "text_mask": (n, n, n)} for n in (4, 16))
    assert text_lengths_of(contract.backbone, profiles) == (4, 16)
    assert plan_profiles(contract.head, (4, 16)) == (), "an LSTM sees one frame a call"
    gpt = config.model_copy(update={"head": head_of_kind("gpt", config.head)})
    head = plan_profiles(policy_contract(gpt).head, (4, 16))
    assert head == ({"features": (1, config.window, config.window)},)
    assert text_lengths_of(policy_contract(gpt).head, head) == ()
    stages = policy_contract(config, two_stages=True).graphs
    assert plan_profiles(stages["vision"], (4, 16)) == ()
    assert text_lengths_of(stages["vision"], ()) == ()
    assert plan_profiles(stages["decoder"], (4, 16)) == profiles
    settings = BuilderSettings()
    keys = [settings.key(plan_profiles(contract.backbone, lengths)) for lengths in ((16,), (4, 16), (4,))]
    assert [key["steps_text_mask"] for key in keys] == ["16/16/16", "4/4/4,16/16/16", "4/4/4"]
    assert settings.key(()).keys() < settings.key(head).keys()


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("0,8", "8,17", "8,8", "16,8", "-4"), "rising numbers from 1 to 16, the policy's longest text"),
        (("'8,'", "'all'"), "whole numbers such as 8,16,32"),
    ],
)
def test_lengths_that_make_no_profiles_are_one_line(bundle: Bundle, texts: tuple[str, ...], expected: str) -> None:
    for text in texts:
        with raises(ConfigError, "--text-lengths", got=text, expected=expected):
            check_text_lengths(parse_text_lengths(text.strip("'")), bundle)


def test_no_sentence_of_the_bundle_is_longer_than_every_profile(bundle: Bundle, tmp_path: Path) -> None:
    token_ids = [np.arange(3), np.arange(9)]
    embedding = {"embedding": np.zeros((9, bundle.policy.decoder.width), np.float32)}
    write_instruction_table(tmp_path / "table", ("go", "stay where you are"), token_ids, np.arange(9), embedding)
    with write_bundle(tmp_path / "knows") as writer:
        shutil.copy(tmp_path / "table", writer.add("instructions.safetensors", "instructions"))
        writer.finish(bundle.manifest)
    knows = load_bundle(tmp_path / "knows")
    assert check_text_lengths((4, 9), knows) == (4, 9)
    with raises(ConfigError, "--text-lengths", got="4,8", expected="one of 9 or more, which a sentence of this..."):
        check_text_lengths((4, 8), knows)


def test_an_instruction_takes_the_smallest_profile_that_it_fits() -> None:
    target = EngineTarget(module="tensorrt", version="10.3.0", sm=87)
    key = EngineKey(graph_sha256="", weights_sha256={}, target=target, builder={})
    record = EngineRecord(key=key, plan="a", sha256="", size_bytes=0, precisions={}, build_seconds=0, text_lengths=(4, 12))
    assert record.choose_profile(4) == (0, 4)
    assert record.choose_profile(5) == (1, 12)
    with raises(ContractError, "instruction", got="13 tokens", expected="at most 12, the longest text of this engine"):
        record.choose_profile(13)
    old = EngineRecord.model_validate_json(record.model_dump_json(exclude={"text_lengths"}))
    assert old.text_lengths == (), "an engine.json from before profiles is still read"
    with raises(ContractError, expected="at most 0, the longest text of this engine"):
        old.choose_profile(1)


def test_the_audit_counts_a_matmul_by_its_widest_profile() -> None:
    tensors = [
        numpy_helper.from_array(np.ones((64, 64), np.int8), "w8"),
        numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
        numpy_helper.from_array(np.array(0, np.int8), "zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"], name="quantize"),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["w8", "scale", "zero"], ["wd"], name="weight"),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], name="MatMul"),
    ]

    def layer(profile: int, precision: str) -> EngineLayer:
        operand = Operand("x", precision, (1, 32, 64))
        return EngineLayer(f"product_myl{profile}_3", "gemm", (operand, operand), (), (operand,), ("MatMul",))

    def computed(*precisions: str) -> str:
        layers = [layer(profile, precision) for profile, precision in enumerate(precisions)]
        model = small_graph(nodes, tensors, width=64)
        audit = audit_built(model, BuiltEngine(b"plan", layers, "test", None, {}, 1, 0, 0.0, num_profiles=len(layers)))
        assert bool(audit.missed) == ("fp32" in precisions)
        return audit.matmuls[0].computed

    assert computed("int8", "int8") == "int8"
    assert computed("int8", "fp32") == "fp32"
    assert computed("fp32", "int8") == "fp32"


def test_the_command_builds_the_lengths_and_refuses_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_rtx()
    write_handmade_bundle(tmp_path / "bundle")
    arguments = ["build", str(tmp_path / "bundle"), "--aot", "sm86", "--stage", "all"]
    built = CliRunner().invoke(app, [*arguments, "--text-lengths", "4,16", "--json"])
    assert built.exit_code == 0, built.output
    assert [(row["stage"], row["text_lengths"]) for row in json.loads(built.stdout)] == [("backbone", [4, 16]), ("head", [])]
    planned = CliRunner().invoke(app, [*arguments, "--dry-run", "--json"])
    reasons = {row["stage"]: row["reason"] for row in json.loads(planned.stdout)}
    assert "steps_text_mask 4/4/4,16/16/16 -> 16/16/16" in reasons["backbone"]
    assert reasons["head"] == "up to date"
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--text-lengths", "4,400"])
    assert stopped.value.code == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("rfedge: --text-lengths: got 4,400, expected rising numbers from 1 to 16")
    assert "\n" not in line
