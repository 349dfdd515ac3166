"""A backbone in two graphs: cut without changing a bit, each with a precision of its own, loaded and built one at a time."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from rfedge.bundle.artifact import Bundle, load_bundle, write_manifest
from rfedge.bundle.engines import find_engine
from rfedge.config import PolicyConfig
from rfedge.contract import policy_contract
from rfedge.data import CalvinDataset
from rfedge.errors import ArtifactError, ConfigError, ExportError
from rfedge.export import graphs
from rfedge.export.graphs import graph_to_prove, share_keep_float
from rfedge.export.options import ExportOptions
from rfedge.export.parity import backbone_call, graph_call
from rfedge.export.passes.split_stages import split_stages
from rfedge.export.passes.standard import apply_passes
from rfedge.export.pipeline import export_checkpoint
from rfedge.export.proof import open_frames, verify_parity
from rfedge.export.quantize import quantize_int8
from rfedge.export.thresholds import THRESHOLDS
from rfedge.export.trace import trace_backbone
from rfedge.messages import Observation
from rfedge.model import build_policy, load_checkpoint
from rfedge.runtimes import EdgePolicy, RuntimeSettings
from rfedge.runtimes.roofline.graph_work import bundle_work
from tests.errors import raises
from tests.export.conftest import write_checkpoint
from tests.export.tensorrt_bundles import build_ahead, device, load_rtx
from tests.model.family import member

NUM_STEPS = 14
INSTRUCTION = "pull the drawer open"
MIXED = "vision=fp16,decoder=int8"


@pytest.fixture(scope="module")
def bundles(
    checkpoints: dict[str, Path], demonstrations: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Bundle]:
    """`tiny` in fp32 in one graph and in two, and in two graphs in int8."""
    folder = tmp_path_factory.mktemp("two-stage")
    return {
        f"{precision}-{stages}": export_checkpoint(
            checkpoints["window"],
            folder / f"{precision}-{stages}",
            ExportOptions(
                precision=precision,
                stages=stages,
                data=demonstrations,
                num_calibration_frames=16,
                num_parity_steps=NUM_STEPS,
            ),
        )
        for precision, stages in (("fp32", "one"), ("fp32", "two"), ("int8", "two"))
    }


@pytest.fixture(scope="module")
def observations(demonstrations: Path) -> list[Observation]:
    dataset = CalvinDataset.open(demonstrations)
    frames = [dataset.frame(number, ("rgb_static", "rgb_gripper")) for number in dataset.frame_numbers()[:NUM_STEPS]]
    return [Observation(frame["rgb_static"], frame["rgb_gripper"]) for frame in frames]


def staged_member(name: str) -> PolicyConfig:
    """Return a member of the family: a memory with a resampler for each camera, or two-way fusion; both with proprioception.

    One layer of each kind: a trace takes as long as there are nodes.
    """
    config = member(name)
    resampler = config.resampler.model_copy(update={"per_camera": config.fusion != "two_way"})
    vision, decoder = (part.model_copy(update={"layers": 1}) for part in (config.vision, config.decoder))
    return config.model_copy(update={"vision": vision, "decoder": decoder, "resampler": resampler, "proprioception": True})


def roll(bundle: Bundle, observations: Sequence[Observation], **settings: Any) -> tuple[npt.NDArray[Any], dict[str, str]]:
    """Return every action, with the head's state at each step, and the settings the backbone was run with."""
    rows = []
    with EdgePolicy.load(bundle.root, settings=RuntimeSettings(threads=1, **settings)) as policy:
        state = policy.initial_state()
        for observation in observations:
            result = policy.infer(observation, INSTRUCTION, state)
            state = result.state
            rows.append(np.concatenate([result.actions.ravel(), state.h.ravel()]))
        return np.stack(rows), policy.parts.backbone.effective_settings()


@pytest.mark.parametrize("name", ["mlp-with-history", "two-way"])
def test_two_graphs_return_what_one_returns_to_the_last_bit(name: str, tmp_path: Path) -> None:
    config = staged_member(name)
    contract = policy_contract(config, two_stages=True)
    one, vision, decoder = (tmp_path / f"{graph}.onnx" for graph in ("one", "vision", "decoder"))
    trace_backbone(build_policy(config, seed=0), graphs._to_trace(contract), one)
    apply_passes(one, one)
    split_stages(one, contract.backbone_stages, {"vision": vision, "decoder": decoder})

    nodes = [{node.name for node in onnx.load(path).graph.node} for path in (one, vision, decoder)]
    assert nodes[0] == nodes[1] | nodes[2]
    assert not nodes[1] & nodes[2], "no node is computed twice"
    calls = [backbone_call(config, [one]), backbone_call(config, [vision, decoder])]
    rng = np.random.default_rng(0)
    for num_tokens in (1, 9):
        inputs = contract.backbone.sample_inputs(rng, dynamic_size=num_tokens)
        whole, staged = (call(inputs) for call in calls)
        assert list(staged) == [spec.name for spec in contract.backbone.outputs]
        for output, array in staged.items():
            np.testing.assert_array_equal(array, whole[output], err_msg=output)
    # what is no latent cannot pass: a decoder that may not read the instruction is refused, not written
    deaf = contract.graphs["decoder"].model_copy(
        update={"inputs": tuple(spec for spec in contract.graphs["decoder"].inputs if spec.name != "text_mask")}
    )
    with raises(ExportError, "decoder stage", got="a path around media from text_mask", expected="media as the only one"):
        split_stages(one, {"decoder": deaf}, {"decoder": tmp_path / "deaf.onnx"})
    assert not (tmp_path / "deaf.onnx").exists()
    with raises(ExportError, "vision stage", got="no output media", remedy="Export it in one graph..."):
        split_stages(decoder, contract.backbone_stages, {"vision": vision, "decoder": decoder})


def test_an_exported_policy_acts_the_same_in_two_graphs(bundles: dict[str, Bundle], observations: list[Observation]) -> None:
    one, two = bundles["fp32-one"], bundles["fp32-two"]
    expected, _ = roll(one, observations)
    actual, settings = roll(two, observations)
    np.testing.assert_array_equal(actual, expected)
    assert settings["stages"] == "vision and decoder, both loaded"
    assert [(item.path, item.role) for item in two.manifest.artifacts] == [
        ("decoder.onnx", "decoder"),
        ("embedding.safetensors", "embedding"),
        ("head.onnx", "head"),
        ("proof.npz", "proof"),
        ("tokenizer.json", "tokenizer"),
        ("vision.onnx", "vision"),
    ]
    assert two.manifest.parity == one.manifest.parity
    assert two.manifest.precision == one.manifest.precision
    with raises(ArtifactError, got="no backbone artifact"):
        two.path("backbone")


def test_int8_passes_its_gates_in_two_graphs(bundles: dict[str, Bundle], observations: list[Observation]) -> None:
    bundle = bundles["int8-two"]
    assert bundle.manifest.parity.passed
    assert bundle.manifest.parity.thresholds == THRESHOLDS["int8"]
    assert bundle.manifest.precision.requested == "int8"
    roles = {item.path: item.role for item in bundle.manifest.artifacts}
    for stage in ("vision", "decoder"):
        assert roles[f"{stage}.onnx"] == stage
        assert roles[f"{stage}.onnx.data"] == "weights"
        assert roles[f"{stage}-cpu.onnx"] == f"{stage}-cpu"
        kernels = {
            node.op_type for node in onnx.load(bundle.root / f"{stage}-cpu.onnx", load_external_data=False).graph.node
        }
        assert "MatMulIntegerToFloat" in kernels
    blocks = bundle.manifest.precision.blocks
    assert {blocks[name].kind for name in ("vision.blocks.0", "decoder.layers.0.block")} == {"int8"}
    assert list(bundle.backbone_graphs(for_cpu=True).values()) == [
        bundle.root / f"{s}-cpu.onnx" for s in ("vision", "decoder")
    ]
    actions, _ = roll(bundle, observations)
    expected, _ = roll(bundles["fp32-one"], observations)
    assert 0 < np.abs(actions - expected).max() < 0.2


def test_the_decoder_is_calibrated_on_what_the_written_vision_returns(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a memory, so that older frames are seen through the same eyes; verify then measures both stages again."""
    given: list[list[dict[str, npt.NDArray[Any]]]] = []

    def remember(source: Path, target: Path, inputs: list[dict[str, npt.NDArray[Any]]], **options: Any) -> int:
        given.append(inputs)
        return quantize_int8(source, target, inputs, **options)

    monkeypatch.setattr(graphs, "quantize_int8", remember)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", staged_member("mlp-with-history"))
    options = ExportOptions(
        precision="vision=bf16,decoder=int8",
        stages="two",
        data=demonstrations,
        num_calibration_frames=8,
        num_parity_steps=8,
        keep_float=("resampler",),
    )
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", options)
    (frames,) = given
    contract = bundle.contract.graphs["decoder"]
    assert len(frames) == len(bundle.manifest.calibration.frames) == 8
    for frame in frames:
        assert list(frame) == [spec.name for spec in contract.inputs]
        for spec in contract.inputs:
            spec.check(frame[spec.name])
    opened = open_frames(load_checkpoint(checkpoint), demonstrations)
    assert opened is not None
    graph, _ = graph_to_prove("vision", bundle.path("vision"), "bf16", work=tmp_path)
    call = graph_call(graph)

    def latents(segment: int, number: int) -> npt.NDArray[Any]:
        images = opened.load((segment, number))
        return call({name: images[name] for name in ("image_static", "image_gripper")})["media"]

    num_remembered = 0
    for frame, (segment, number) in zip(frames, bundle.manifest.calibration.frames, strict=True):
        np.testing.assert_array_equal(frame["media"], latents(segment, number))
        if frame["media_mask"][0, -1]:
            num_remembered += 1
            np.testing.assert_array_equal(frame["media_history"][:, -1], latents(segment, number - 1))
    assert num_remembered > 0
    verified = verify_parity(bundle, checkpoint, data=demonstrations, num_steps=2, seed=0)
    assert "vision by a graph in fp32 that rounds to bf16" in verified.manifest.parity.inputs

    blocks = bundle.manifest.precision.blocks
    assert [blocks[name].kind for name in ("vision.blocks.0", "resampler.layers.0")] == ["bf16", "fp32"]
    assert blocks["decoder.layers.0.block"].kind == "int8"
    assert bundle.manifest.precision.requested == "vision=bf16,decoder=int8"
    assert bundle.manifest.parity.thresholds == THRESHOLDS["bf16"]
    assert bundle.manifest.parity.inputs.endswith("; checked against the gates of bf16")
    assert "vision by a graph in fp32 that rounds to bf16, which this CPU cannot run" in bundle.manifest.parity.inputs


def test_a_precision_for_each_stage(
    checkpoints: dict[str, Path], demonstrations: Path, tmp_path: Path, observations: list[Observation]
) -> None:
    options = ExportOptions(
        precision=MIXED, stages="two", data=demonstrations, num_calibration_frames=16, num_parity_steps=NUM_STEPS
    )
    bundle = export_checkpoint(checkpoints["window"], tmp_path / "bundle", options)
    manifest = bundle.manifest
    assert manifest.precision.requested == MIXED
    assert manifest.parity.thresholds == THRESHOLDS["int8"]
    assert manifest.parity.inputs.endswith("; checked against the gates of int8")
    assert manifest.precision.blocks["vision.blocks.1"].kind == "fp16"
    assert manifest.precision.blocks["decoder.layers.1.block"].kind == "int8"
    assert [path.name for path in bundle.backbone_graphs(for_cpu=True).values()] == ["vision.onnx", "decoder-cpu.onnx"]
    with EdgePolicy.load(bundle.root) as policy:
        assert policy.parts.precision == MIXED
        policy.reset(INSTRUCTION)
        assert np.isfinite(policy.act(observations[0]).actions).all()
    verified = verify_parity(bundle, checkpoints["window"], data=demonstrations, num_steps=6, seed=5)
    assert verified.manifest.parity.num_steps == 6
    assert verified.manifest.parity.thresholds == THRESHOLDS["int8"]


def test_blocks_to_keep_in_float_go_to_the_stage_that_has_them(bundles: dict[str, Bundle]) -> None:
    stages = bundles["fp32-two"].backbone_graphs(for_cpu=True)
    wanted = ("vision.blocks.0", "decoder.layers.*.block", "resampler*.layers.*.attention.to_")
    shared = share_keep_float(stages, wanted)
    assert shared == {"vision": (wanted[0], wanted[2]), "decoder": (wanted[1],)}
    assert share_keep_float(stages, None) == {"vision": None, "decoder": None}
    with raises(ConfigError, "keep_float", got="'vision.blockz'", expected="...(did you mean 'vision.blocks...'?)"):
        share_keep_float(stages, ["vision.blockz"])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_one_stage_at_a_time_acts_the_same(
    bundles: dict[str, Bundle], observations: list[Observation], backend: str
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    rows = []
    for one_at_a_time in (False, True):
        settings = RuntimeSettings(threads=1, one_stage_at_a_time=one_at_a_time)
        with EdgePolicy.load(bundles["int8-two"].root, backend=backend, settings=settings) as policy:
            policy.reset(INSTRUCTION)
            rows.append(np.stack([policy.act(observation).actions for observation in observations[:4]]))
            stages = policy.parts.backbone.effective_settings()["stages"]
            loaded = [runner._is_active for runner in policy.parts.backbone._stages]  # type: ignore[attr-defined]
        assert stages == f"vision and decoder, {'one at a time' if one_at_a_time else 'both loaded'}"
        assert loaded == [not one_at_a_time] * 2
    np.testing.assert_array_equal(rows[0], rows[1])


def test_one_stage_at_a_time_needs_stages(bundles: dict[str, Bundle], checkpoints: dict[str, Path]) -> None:
    settings = RuntimeSettings(one_stage_at_a_time=True)
    with raises(ConfigError, got="a backbone in one graph", expected="vision and decoder"):
        EdgePolicy.load(bundles["fp32-one"].root, settings=settings)
    with raises(ConfigError, got="a backbone in one graph", expected="vision and decoder"):
        EdgePolicy.load(checkpoints["window"], backend="torch", settings=settings)


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_a_stage_that_cannot_be_loaded_is_refused_before_the_first_call(
    bundles: dict[str, Bundle], tmp_path: Path, one_at_a_time: bool
) -> None:
    folder = shutil.copytree(bundles["fp32-two"].root, tmp_path / "bundle")
    (folder / "decoder.onnx").write_bytes((folder / "vision.onnx").read_bytes())
    settings = RuntimeSettings(verify=False, one_stage_at_a_time=one_at_a_time)
    manifest = bundles["fp32-two"].manifest
    artifacts = tuple(
        item.model_copy(update={"size_bytes": (folder / item.path).stat().st_size}) for item in manifest.artifacts
    )
    write_manifest(folder, manifest.model_copy(update={"artifacts": artifacts}))
    with raises(ArtifactError, "graph decoder.onnx inputs", got="['image_gripper', 'image_static']"):
        EdgePolicy.load(folder, settings=settings)


def test_engines_of_one_stage_after_the_other(bundles: dict[str, Bundle]) -> None:
    rtx = load_rtx()
    bundle = bundles["int8-two"]
    for stage in ("vision", "decoder"):
        (result,) = build_ahead(bundle.root, stage=stage)
        assert result.built
        assert result.planned.stage == stage
        assert result.record.precisions["int8"] > 0
        assert result.audit.missed == ()
    assert [(item.planned.stage, item.built) for item in build_ahead(bundle.root, stage="all")] == [
        ("vision", False),
        ("decoder", False),
        ("head", True),
    ]
    opened = load_bundle(bundle.root)
    plans = [find_engine(opened, stage, device(86, rtx.version))[0].name for stage in opened.contract.graphs]
    assert plans == ["vision.plan", "decoder.plan", "head.plan"]
    with raises(ConfigError, "--stage", got="'backbone'", expected="one of vision, decoder, head, all"):
        build_ahead(bundle.root, stage="backbone")


def test_two_graphs_cost_what_one_costs(bundles: dict[str, Bundle]) -> None:
    one, two = (bundle_work(bundles[name]) for name in ("fp32-one", "fp32-two"))
    assert two.total() == one.total()
    assert {name: sums.macs for name, sums in two.blocks().items()} == {
        name: sums.macs for name, sums in one.blocks().items()
    }


def test_an_export_killed_between_the_stages_leaves_nothing(
    traces: Path, bundles: dict[str, Bundle], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from rfedge.cli.app import main\n"
        "from rfedge.export import graphs, trace\n"
        "from tests.traces import TraceStore\n"
        f"trace.trace_graph = TraceStore(Path({str(traces)!r}))\n"
        "write = graphs.write_form\n"
        "def slow(name, *arguments, **options):\n"
        "    if name == 'decoder':\n"
        "        print('half-way', flush=True); time.sleep(120)\n"
        "    return write(name, *arguments, **options)\n"
        "graphs.write_form = slow\n"
        f"main(['export', {str(checkpoints['window'])!r}, '--stages', 'two', '--output', {str(output)!r}])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout.readline() == "half-way\n"
    assert [path.is_file() for path in tmp_path.glob("*/vision.onnx")] == [True], "the first stage is written"
    os.kill(process.pid, signal.SIGTERM)
    process.communicate()
    assert list(tmp_path.iterdir()) == []
