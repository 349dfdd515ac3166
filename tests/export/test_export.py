"""Checkpoint to bundle and back to actions, on `tiny`, with real ONNX Runtime on both precisions."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from rfedge.bundle.artifact import Bundle, load_bundle
from rfedge.data import CalvinDataset
from rfedge.errors import ArtifactError, ConfigError, DatasetError, ExportError, GateError
from rfedge.export import pipeline
from rfedge.export.options import ExportOptions
from rfedge.export.pipeline import check_export, export_checkpoint
from rfedge.export.precision_audit import effective_precisions, require_integer_kernels
from rfedge.export.proof import verify_parity
from rfedge.export.thresholds import THRESHOLDS
from rfedge.messages import Observation
from rfedge.model import load_checkpoint
from rfedge.recurrence import Arrays, acting_row, advance, initial_state
from rfedge.runtimes import EdgePolicy
from rfedge.runtimes.roofline.report import inspect_bundle
from tests.errors import raises
from tests.export.conftest import write_checkpoint
from tests.tolerances import assert_same_in_fp32, fp32_tolerance, head_terms, policy_terms

NUM_STEPS = 24  # twice the window: the second half of the `window` rollout replays


@pytest.fixture(scope="module")
def bundles(
    checkpoints: dict[str, Path], demonstrations: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    made = {
        name: export_checkpoint(checkpoint, folder / name, ExportOptions(precision="fp32", num_parity_steps=NUM_STEPS))
        for name, checkpoint in checkpoints.items()
    }
    options = ExportOptions(
        precision="int8", data=demonstrations, keep_float=(), num_calibration_frames=24, num_parity_steps=NUM_STEPS
    )
    made["int8"] = export_checkpoint(checkpoints["window"], folder / "int8", options)
    return made


@pytest.mark.parametrize("time_keeping", ["window", "carry"])
def test_24_steps_with_carried_state_agree_with_pytorch(
    bundles: dict[str, Bundle], checkpoints: dict[str, Path], demonstrations: Path, time_keeping: str
) -> None:
    """Pose, gripper, h and c at every step, the bundle through the runtime a robot would use."""
    checkpoint = load_checkpoint(checkpoints[time_keeping])
    policy, config = checkpoint.policy, checkpoint.config
    dataset = CalvinDataset.open(demonstrations)
    numbers = dataset.frame_numbers()[:NUM_STEPS]
    assert len(numbers) == NUM_STEPS
    instruction = "pull the drawer open"
    ids, mask = checkpoint.tokenizer.encode(instruction)
    text = policy.embed_text(torch.from_numpy(ids)[None])

    def torch_head(inputs: Arrays) -> Arrays:
        outputs = policy.head(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return {name: out.numpy() for name, out in zip(("pose", "gripper", "h_out", "c_out"), outputs, strict=True)}

    expected, terms = initial_state(config), policy_terms(config)
    with EdgePolicy.load(bundles[time_keeping].root) as edge, torch.inference_mode():
        state = edge.initial_state()
        for step, number in enumerate(numbers):
            frame = dataset.frame(number, ("rgb_static", "rgb_gripper"))
            observation = Observation(frame["rgb_static"], frame["rgb_gripper"])
            feature = policy.backbone(
                torch.from_numpy(observation.static)[None],
                torch.from_numpy(observation.gripper)[None],
                text,
                torch.from_numpy(mask)[None],
            )
            pose, gripper, expected = advance(config, torch_head, feature.numpy(), expected)
            result = edge.infer(observation, instruction, state)
            state = result.state
            assert_same_in_fp32(result.actions[:, :6], pose, terms, f"pose at step {step}")
            np.testing.assert_array_equal(result.actions[:, 6], np.where(gripper > 0.5, 1.0, -1.0))
            assert_same_in_fp32(state.h, expected.h, terms, f"h at step {step}")
            assert_same_in_fp32(state.c, expected.c, terms, f"c at step {step}")
            assert state.num_steps == expected.num_steps == step + 1


@pytest.mark.parametrize("time_keeping", ["window", "carry"])
def test_the_gripper_probability_agrees_with_pytorch(
    bundles: dict[str, Bundle], checkpoints: dict[str, Path], time_keeping: str
) -> None:
    parity = bundles[time_keeping].manifest.parity
    assert parity.num_steps == NUM_STEPS
    assert parity.metrics["gripper_flip_rate"] == 0
    relative = fp32_tolerance(policy_terms(bundles[time_keeping].policy))
    # A cell adds up its steps, of these inputs to 4.4; the others are 1 at most.
    for name, largest in {"gripper_max_error": 1.0, "hidden_max_drift": 1.0, "cell_max_drift": 4.4}.items():
        assert parity.metrics[name] < relative * largest, name


def test_the_two_ways_to_keep_time_differ_once_the_window_is_full(bundles: dict[str, Bundle]) -> None:
    states = {}
    for name in ("window", "carry"):
        with EdgePolicy.load(bundles[name].root) as edge:
            state, trace = edge.initial_state(), []
            for step in range(14):
                image = np.random.default_rng(step).integers(0, 256, (200, 200, 3), np.uint8)
                state = edge.infer(Observation(image, image[:84, :84].copy()), "pull the drawer open", state).state
                trace.append(state.h[:, acting_row(state)])
            states[name] = trace
    assert_same_in_fp32(states["window"][11], states["carry"][11], head_terms(bundles["carry"].policy))
    assert np.abs(states["window"][13] - states["carry"][13]).max() > 1e-4


def test_int8_is_int8_in_every_matmul_and_says_so(bundles: dict[str, Bundle]) -> None:
    manifest = bundles["int8"].manifest
    blocks = {block: found.kind for block, found in manifest.precision.blocks.items()}
    assert blocks["preprocess_static"] == blocks["preprocess_gripper"] == blocks["head"] == "fp32"
    assert blocks["vision"] == "fp32"  # the patch convolution
    for name in ("vision.blocks.0", "resampler.layers.0", "decoder.layers.1.cross_attention", "decoder.layers.1.block"):
        assert blocks[name] == "int8", blocks
    assert bundles["int8"].path("backbone").stat().st_size < 0.5 * bundles["window"].path("backbone").stat().st_size
    assert {found.kind for found in bundles["window"].manifest.precision.blocks.values()} == {"fp32"}


def test_int8_weights_and_activations_are_symmetric_and_per_channel(bundles: dict[str, Bundle]) -> None:
    model = onnx.load(bundles["int8"].path("backbone"))
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in arrays]
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(weights) >= 20
    assert len(quantizers) >= 10
    for node in [*weights, *quantizers]:
        assert not arrays[node.input[2]].any(), f"{node.name} has a zero-point"
        assert arrays[node.input[2]].dtype == np.int8
    assert all(arrays[node.input[1]].ndim == 1 and arrays[node.input[1]].size > 1 for node in weights)
    assert all(arrays[node.input[1]].ndim == 0 for node in quantizers)


def test_the_audit_notices_matmuls_that_fell_back_to_float(bundles: dict[str, Bundle]) -> None:
    path = bundles["window"].path("backbone")
    with raises(ExportError, got="0 MatMuls on integer kernels", expected=5):
        require_integer_kernels(path, num_expected=5)
    assert {found.kind for found in effective_precisions(path).values()} == {"fp32"}


def test_a_bundle_says_how_its_checkpoint_was_trained(bundles: dict[str, Bundle], checkpoints: dict[str, Path]) -> None:
    for name in ("window", "int8"):
        manifest = bundles[name].manifest
        assert manifest.training == load_checkpoint(checkpoints["window"]).metadata
        assert manifest.scenes == ("D",)


@pytest.mark.slow
def test_calibration_is_recorded_and_repeatable(
    bundles: dict[str, Bundle], checkpoints: dict[str, Path], demonstrations: Path, tmp_path: Path
) -> None:
    record = bundles["int8"].manifest.calibration
    assert len(record.frames) == len(set(record.frames)) == 24
    assert {episode for episode, _ in record.frames} == set(range(6)), "every episode lends frames"
    options = ExportOptions(
        precision="int8", data=demonstrations, keep_float=(), num_calibration_frames=24, num_parity_steps=NUM_STEPS
    )
    again = export_checkpoint(checkpoints["window"], tmp_path / "again", options)
    assert again.manifest.calibration == record
    hashes = [{item.path: item.sha256 for item in bundle.manifest.artifacts} for bundle in (bundles["int8"], again)]
    assert hashes[0] == hashes[1], "same seed, same bytes"
    other = export_checkpoint(checkpoints["window"], tmp_path / "other", dataclasses.replace(options, seed=1))
    assert other.manifest.calibration.sha256 != record.sha256


@pytest.mark.slow
def test_demonstrations_round_the_weights_of_int4(
    checkpoints: dict[str, Path], demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With them errors make up for each other; without them weights are rounded to the nearest."""
    monkeypatch.setitem(THRESHOLDS, "int4-weight", {})  # which random weights rounded to the nearest miss
    made = {
        name: export_checkpoint(
            checkpoints["window"],
            tmp_path / name,
            ExportOptions(precision="int4-weight", data=data, num_calibration_frames=24, num_parity_steps=NUM_STEPS),
        )
        for name, data in (("calibrated", demonstrations), ("nearest", None))
    }
    record = made["calibrated"].manifest.calibration
    assert record.method == "GPTQ in blocks of 32, symmetric, corrected bias"
    assert made["nearest"].manifest.calibration is None
    verified = [
        verify_parity(bundle, checkpoints["window"], data=demonstrations, num_steps=NUM_STEPS, seed=3)
        for bundle in made.values()
    ]
    rms = [bundle.manifest.parity.metrics["feature_relative_rms"] for bundle in verified]
    assert rms[0] < 0.6 * rms[1]
    blocks = made["calibrated"].manifest.precision.blocks
    assert blocks["vision.blocks.0"].kind == "int4-weight"
    assert blocks["resampler.layers.0"].matmuls["int8-weight"] == 2


def test_verify_measures_parity_again_and_refuses_another_checkpoint(
    bundles: dict[str, Bundle], checkpoints: dict[str, Path], demonstrations: Path, tmp_path: Path
) -> None:
    verified = verify_parity(bundles["int8"], checkpoints["window"], data=demonstrations, num_steps=8, seed=5)
    assert verified.manifest.parity.num_steps == 8
    other = write_checkpoint(tmp_path / "other", load_checkpoint(checkpoints["window"]).config, seed=9)
    with raises(ArtifactError, got="weights with sha256 ...", expected="..., which..."):
        verify_parity(bundles["int8"], other, data=None, num_steps=1, seed=0)


def test_a_missed_gate_ends_with_the_numbers_and_writes_nothing(
    checkpoints: dict[str, Path], demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(THRESHOLDS, "int8", {"feature_relative_rms": 1e-9, "min_feature_cosine": 2.0})
    options = ExportOptions(precision="int8", data=demonstrations, num_calibration_frames=4, num_parity_steps=4)
    got = "feature_relative_rms 0... (allowed <= 1e-09); min_feature_cosine 0.99... (allowed >= 2)"
    with raises(GateError, "parity of the int8 export", got=got):
        export_checkpoint(checkpoints["window"], tmp_path / "bundle", options)
    assert list(tmp_path.iterdir()) == []
    forced = export_checkpoint(checkpoints["window"], tmp_path / "bundle", dataclasses.replace(options, force=True))
    assert forced.manifest.parity.forced
    assert not forced.manifest.parity.passed


@pytest.mark.slow
def test_query_attention_stays_in_float_where_its_rows_miss_a_gate(
    checkpoints: dict[str, Path], demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ExportOptions(precision="int8", data=demonstrations, num_calibration_frames=4, num_parity_steps=4)
    by_row = export_checkpoint(checkpoints["window"], tmp_path / "rows", options)
    assert by_row.manifest.parity.inputs.endswith(pipeline.IN_ROWS)
    measured = by_row.manifest.parity.metrics["feature_relative_rms"]
    monkeypatch.setitem(THRESHOLDS, "int8", {"feature_relative_rms": 0.999 * measured})
    in_float = export_checkpoint(checkpoints["window"], tmp_path / "float", dataclasses.replace(options, force=True))
    assert pipeline.IN_ROWS not in in_float.manifest.parity.inputs
    kernels = [
        require_integer_kernels(bundle.path("backbone-cpu"), num_expected=1)["MatMulIntegerToFloat"]
        for bundle in (by_row, in_float)
    ]
    assert kernels[0] > kernels[1]
    weights = [(bundle.root / "backbone.onnx.data").stat().st_size for bundle in (by_row, in_float)]
    assert weights[0] < weights[1]
    block = "decoder.layers.0.cross_attention"
    assert by_row.manifest.precision.blocks[block].matmuls == {"int8": 2, "int8-weight": 4}
    assert in_float.manifest.precision.blocks[block].matmuls == {"int8": 2, "fp32": 4}
    assert all(inspect_bundle(bundle).disagreements == () for bundle in (by_row, in_float))


def test_wrong_requests_are_refused_before_any_work(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with raises(ConfigError, "precision", got="'int7'"):
        check_export(checkpoints["window"], output, ExportOptions(precision="int7"))
    with raises(ConfigError, "precision int8", got="no demonstrations", expected="...synthetic calibration is refused..."):
        check_export(checkpoints["window"], output, ExportOptions(precision="int8"))
    with pytest.raises(DatasetError):
        check_export(checkpoints["window"], output, ExportOptions(precision="int8", data=tmp_path))
    with raises(ArtifactError, "checkpoint ...nowhere", got="no folder"):
        check_export(tmp_path / "nowhere", output, ExportOptions(precision="fp32"))
    output.mkdir()
    with raises(ArtifactError, got="an existing path", expected="a free name"):
        check_export(checkpoints["window"], output, ExportOptions(precision="fp32"))


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_an_export_killed_half_way_leaves_no_bundle(
    checkpoints: dict[str, Path], demonstrations: Path, tmp_path: Path, signal_number: int
) -> None:
    output = tmp_path / "bundle"
    code = (
        "import sys, time\n"
        "from rfedge.export import graphs\n"
        "from rfedge.cli.app import main\n"
        "def slow(policy, contract, path):\n"
        "    path.write_bytes(b'half a graph'); print('half-way', flush=True); time.sleep(120)\n"
        "graphs.trace_backbone = slow\n"
        f"main(['export', {str(checkpoints['window'])!r}, '--output', {str(output)!r}])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout.readline() == "half-way\n"
    os.kill(process.pid, signal_number)
    process.communicate()
    assert not output.exists()
    if signal_number == signal.SIGTERM:
        assert list(tmp_path.iterdir()) == []
        return
    export_checkpoint(checkpoints["window"], output, ExportOptions(precision="fp32", num_parity_steps=2))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"], "the next export removes what was left"


def test_the_manifest_is_plain_json_with_everything_a_robot_must_know(bundles: dict[str, Bundle]) -> None:
    document = json.loads((bundles["int8"].root / "manifest.json").read_text())
    assert document["contract"]["action"]["order"] == ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
    assert document["contract"]["action"]["position_scale_m"] == 0.02
    assert document["policy"]["time_keeping"] == "window"
    roles = {"backbone", "backbone-cpu", "weights", "head", "embedding", "tokenizer", "proof"}
    assert {item["role"] for item in document["artifacts"]} == roles
    assert all(len(item["sha256"]) == 64 for item in document["artifacts"])
    assert document["versions"]["onnxruntime"]


def test_a_bundle_still_works_after_it_was_moved(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(bundles["int8"].root, moved)
    assert load_bundle(moved).manifest == bundles["int8"].manifest
    image = np.zeros((200, 200, 3), np.uint8)
    with EdgePolicy.load(moved) as policy:
        policy.reset("push the drawer shut")
        step = policy.act(Observation(image, image[:84, :84].copy()))
    assert step.actions.shape == (2, 7)


@pytest.mark.slow
def test_named_blocks_stay_in_float_and_unknown_ones_are_refused(
    checkpoints: dict[str, Path], demonstrations: Path, tmp_path: Path
) -> None:
    options = ExportOptions(
        precision="int8", data=demonstrations, num_calibration_frames=4, num_parity_steps=4, keep_float=("resampler",)
    )
    blocks = export_checkpoint(checkpoints["window"], tmp_path / "bundle", options).manifest.precision.blocks
    assert blocks["resampler.layers.0"].kind == "fp32"
    assert blocks["vision.blocks.0"].kind == blocks["decoder.layers.0.block"].kind == "int8"
    wrong = dataclasses.replace(options, keep_float=("vision.block.0",))
    with raises(ConfigError, "keep_float", got="'vision.block.0'", expected="... (did you mean 'vision.blocks.0'?)"):
        export_checkpoint(checkpoints["window"], tmp_path / "other", wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_demonstrations_of_another_rate_are_refused(
    checkpoints: dict[str, Path], demonstrations: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(demonstrations, data)
    (data / "conversion.json").write_text(json.dumps({"frequency_hz": 10.0, "options": {"resize": "crop"}}))
    with raises(ConfigError, "control rate of demonstrations ...", got="10 Hz", expected="30 Hz, that of the checkpoint"):
        export_checkpoint(checkpoints["window"], tmp_path / "bundle", ExportOptions(precision="fp32", data=data))
