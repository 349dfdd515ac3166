"""Two ways to count, from the graph and from the configuration, and the figures that others published."""

import dataclasses
from pathlib import Path

import onnx
import pytest
import torch

from rfedge.bundle.artifact import Bundle
from rfedge.config import GPTNeoXConfig, LlamaConfig, MPTConfig, PolicyConfig, preset
from rfedge.errors import ArtifactError, ConfigError
from rfedge.export.precision_audit import effective_precisions
from rfedge.model import build_policy
from rfedge.runtimes.roofline.analytic_work import _FORMS, analytic_work
from rfedge.runtimes.roofline.graph_work import GraphCount, bundle_work, head_steps, read_graph
from rfedge.runtimes.roofline.report import inspect_bundle
from rfedge.runtimes.roofline.work import STAGES, PolicyWork, label_of
from tests.errors import raises
from tests.runtimes.inspection.traced_policies import changed_tiny, quantized_bundle, traced_bundle

SMALL_DECODER = {"width": 64, "layers": 4, "heads": 2, "vocab_size": 1024, "text_length": 16}
FUSION = {"cross_attention_heads": 2, "cross_attention_head_size": 32}
VARIANTS = {
    "carry, own resamplers, chunk of 3": changed_tiny(
        time_keeping="carry",
        chunk_size=3,
        resampler={"layers": 2, "latents": 8, "heads": 2, "head_size": 32, "per_camera": True},
    ),
    "neox, pre": changed_tiny(
        fusion="pre",
        decoder=GPTNeoXConfig(
            kind="gpt_neox", mlp_width=96, cross_attention_every=2, **SMALL_DECODER, **FUSION
        ).model_dump(),
    ),
    "llama, grouped heads": changed_tiny(
        decoder=LlamaConfig(kind="llama", mlp_width=96, key_value_heads=1, **SMALL_DECODER, **FUSION).model_dump()
    ),
    "mosaic, dead last block": changed_tiny(
        decoder=MPTConfig(feature="last_block_input", **SMALL_DECODER, **FUSION).model_dump()
    ),
}


def assert_same(graph: PolicyWork, analytic: PolicyWork) -> None:
    for stage in STAGES:
        assert dataclasses.asdict(graph.stage(stage)) == dataclasses.asdict(analytic.stage(stage)), stage
    assert set(graph.blocks()) == set(analytic.blocks())
    assert graph.uncounted == analytic.uncounted == ()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return traced_bundle(tmp_path_factory.mktemp("tiny"), preset("tiny"))


def test_the_configuration_gives_what_the_graph_gives(tiny: Bundle) -> None:
    assert_same(bundle_work(tiny), analytic_work(preset("tiny")))


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_member_of_the_family_agrees(name: str, tmp_path: Path) -> None:
    assert_same(bundle_work(traced_bundle(tmp_path, VARIANTS[name])), analytic_work(VARIANTS[name]))


def test_int8_graphs_agree_too_and_are_labelled_as_the_exporter_labels_them(tiny: Bundle, tmp_path: Path) -> None:
    bundle = quantized_bundle(tmp_path, tiny)
    work = bundle_work(bundle)
    assert_same(work, analytic_work(preset("tiny"), "int8"))
    audited = effective_precisions(bundle.path("backbone"))
    assert {block: sums.label for (_, block), sums in work.blocks().items() if block != "head"} == {
        block: str(found) for block, found in audited.items()
    }
    share = work.total().macs_by_arithmetic
    assert share["int8"] + share["fp32"] == work.total().macs


def test_a_manifest_that_says_otherwise_is_contradicted(tiny: Bundle) -> None:
    claimed = {"decoder.layers.0.block": "int8", "vision.blocks.0": "fp32"}
    precision = tiny.manifest.precision.model_copy(update={"blocks": claimed})
    bundle = Bundle(tiny.root, tiny.manifest.model_copy(update={"precision": precision}))
    inspection = inspect_bundle(bundle, devices=("thor-t5000",))
    assert inspection.disagreements == ("decoder.layers.0.block: the manifest says int8, the graph fp32",)
    assert inspect_bundle(tiny, devices=("thor-t5000",)).disagreements == ()


@pytest.mark.slow
def test_playtable_small_agrees_in_both_precisions(tmp_path: Path) -> None:
    for name in ("fp32", "int8"):
        (tmp_path / name).mkdir()
    bundle = traced_bundle(tmp_path / "fp32", preset("playtable-small"))
    assert_same(bundle_work(bundle), analytic_work(preset("playtable-small")))
    quantized = quantized_bundle(tmp_path / "int8", bundle)
    assert_same(bundle_work(quantized), analytic_work(preset("playtable-small"), "int8"))


def test_the_full_size_policy_costs_what_is_published() -> None:
    """RoboFlamingo-3B at 13 tokens: 162 / 11.5 / 30.1 (24 layers, of which 23 are alive) / 0.04 GMAC; see DeeR, Table 1."""
    config = preset("M-3B").model_copy(update={"time_keeping": "carry"})
    work = analytic_work(config, text_tokens=13)
    gmac = {stage: work.stage(stage).macs / 1e9 for stage in STAGES}
    assert gmac["vision"] == pytest.approx(162, rel=0.002)
    assert gmac["resampler"] == pytest.approx(11.5, rel=0.006)
    assert gmac["decoder"] == pytest.approx(30.1 * 23 / 24, rel=0.002)
    assert gmac["head"] == pytest.approx(0.04, rel=0.1)
    assert analytic_work(preset("M-3B")).stage("head").macs / 1e9 == pytest.approx(12 * 0.0412, rel=0.01), (
        "12 LSTMs side by side"
    )
    assert work.stage("head").parameters == 41_194_759
    assert work.stage("vision").parameters / 1e6 == pytest.approx(304.0, rel=0.005)


@pytest.mark.parametrize("name", ["tiny", "playtable-small"])
def test_parameters_are_those_of_the_model_less_its_tables(name: str) -> None:
    config = preset(name)
    with torch.device("meta"):
        policy = build_policy(config, seed=0)
    tables = ("embedding", "latents", "gate")  # tokens, positions, class token; latents; gates, folded at export
    skipped = ("resampler.layers.0.attention.to_q", "resampler.layers.0.norm_latents")  # folded into a constant
    counted = sum(
        parameter.numel()
        for path, parameter in policy.named_parameters()
        if not any(word in path.rsplit(".", 2)[-1] or path.startswith("embedding") for word in tables)
        and not any(word in path for word in skipped)
    )
    # The bias that the camera normalisation becomes; a stem has one anyway.
    folded = 0 if config.vision.stem_widths else config.vision.width
    assert analytic_work(config).total().parameters == counted + folded


def test_precisions_change_bytes_and_arithmetic_but_not_the_work() -> None:
    config = preset("playtable-small")
    works = {precision: analytic_work(config, precision).total() for precision in _FORMS}
    assert len({sums.macs for sums in works.values()}) == len({sums.parameters for sums in works.values()}) == 1
    sizes = [works[name].weight_bytes for name in ("fp32", "fp16", "int8", "int4-weight")]
    assert sizes == sorted(sizes, reverse=True)
    assert works["int8-weight"].weight_bytes == works["int8"].weight_bytes
    assert set(works["int4-weight"].macs_by_arithmetic) == {"fp32"}
    assert works["fp16"].macs_by_arithmetic["fp16"] > 0.85 * works["fp16"].macs
    with raises(ConfigError, "precision", got="'int9'", expected="one of fp32, ...did you mean 'int8'..."):
        analytic_work(config, "int9")


def test_lstms_side_by_side_compute_for_each_row_and_read_their_weights_once() -> None:
    carry, window = (analytic_work(changed_tiny(time_keeping=name)).stage("head") for name in ("carry", "window"))
    config = preset("tiny")
    assert (head_steps(config), head_steps(changed_tiny(time_keeping="carry"))) == (12, 1)
    assert carry.parameters == window.parameters
    lstm_macs = sum(4 * 48 * (48 + width) for width in (64, 48, 48, 48))
    mlp_macs = sum(48 * 48 + 48 * 32 + 32 * size for size in (6, 1))
    assert window.macs - carry.macs == 11 * (lstm_macs + mlp_macs)
    assert window.traffic_bytes - carry.traffic_bytes == window.activation_bytes - carry.activation_bytes


def test_heads_without_a_state_and_a_backbone_with_memory_are_counted() -> None:
    plain = analytic_work(preset("tiny"))
    gpt = analytic_work(changed_tiny(head={"kind": "gpt", "width": 32, "layers": 2, "heads": 2, "mlp_sizes": (48, 32)}))
    mlp = analytic_work(changed_tiny(head={"kind": "mlp", "hidden_size": 48, "mlp_sizes": (48, 32)}, media_frames=3))
    assert gpt.stage("head").macs > 12 * 2 * 12 * 32 * 32, "two blocks over twelve steps"
    assert mlp.head_steps == 1
    assert mlp.stage("decoder").macs > plain.stage("decoder").macs
    assert mlp.stage("vision") == plain.stage("vision")
    two_way = analytic_work(changed_tiny(fusion="two_way"))
    assert two_way.stage("decoder").macs > plain.stage("decoder").macs
    assert two_way.stage("decoder").parameters == plain.stage("decoder").parameters


def test_a_file_that_is_no_graph_is_one_sentence(tmp_path: Path) -> None:
    for name, content in (("text.onnx", b"not a protobuf at all"), ("empty.onnx", b""), ("short.onnx", b"\x3a\xff\x01ab")):
        (tmp_path / name).write_bytes(content)
        with raises(ArtifactError, f"graph {name}", expected="an ONNX file"):
            read_graph(tmp_path / name)
    with raises(ArtifactError, "graph missing.onnx", got="...No such file..."):
        read_graph(tmp_path / "missing.onnx")


def test_operators_that_cannot_be_counted_are_named(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [4, 4], [0.0] * 16)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Einsum", ["x", "w"], ["y"], name="sum", equation="ij,jk->ik"),
            onnx.helper.make_node("MatMul", ["y", "w"], ["z"], name="shapeless"),
        ],
        "graph",
        [value("x", onnx.TensorProto.FLOAT, [2, 4])],
        [value("z", onnx.TensorProto.FLOAT, [2, 4])],
        [weight],
    )
    path = tmp_path / "backbone.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    count = GraphCount(read_graph(path))
    assert count.matmuls == []
    assert count.uncounted == ["Einsum sum", "MatMul shapeless"]


def test_a_block_of_several_precisions_says_how_many() -> None:
    assert label_of(["int8", "int8", "fp32"]) == "int8 (2 of 3 MatMuls)"
    assert label_of(["fp32"]) == "fp32"
    assert label_of(["int4-weight"] * 3) == "int4-weight"
    assert label_of([]) == "-"


def test_every_preset_can_be_counted() -> None:
    from rfedge.config import preset_names

    for name in preset_names():
        config: PolicyConfig = preset(name)
        work = analytic_work(config, "int8")
        assert all(work.stage(stage).macs > 0 for stage in STAGES)
        assert work.memory_bytes > work.total().weight_bytes
