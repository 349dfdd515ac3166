"""A shipped policy is exported by its name alone: the demonstrations are collected once, by scripted experts."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rfedge import policies
from rfedge.bundle.artifact import load_bundle
from rfedge.cli.app import app
from rfedge.cli.demos import expert_demonstrations as collecting
from rfedge.cli.demos.expert_demonstrations import Demonstrations, expert_demonstrations
from rfedge.config import preset
from rfedge.errors import ArtifactError
from rfedge.export.thresholds import THRESHOLDS
from rfedge.model import checkpoint_sha256, load_checkpoint
from rfedge.policies import JUMP_STEP, SHIPPED, find_checkpoint
from tests.errors import raises
from tests.export.conftest import write_checkpoint
from tests.synthetic_demonstrations import write_demonstrations
from tests.tool_modules import load_tool

TASKS = ("open_drawer", "close_drawer")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of policies in place of the package's, and an empty cache."""
    path = tmp_path / "policies"
    path.mkdir()
    monkeypatch.setattr(policies, "FOLDER", path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    few = functools.partial(expert_demonstrations, episodes_per_task=2, tasks=TASKS)
    monkeypatch.setattr(collecting, "expert_demonstrations", few)
    return path


def trained(path: Path) -> Path:
    config = preset("tiny")
    decoder = config.decoder.model_copy(update={"text_length": 32})  # as long as the experts' sentences
    changes = {"decoder": decoder, "chunk_size": 4, "frame_stride": 4, "proprioception": True}
    return write_checkpoint(path, config.model_copy(update=changes))


def test_a_name_is_enough_to_export(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    trained(folder / JUMP_STEP / "checkpoint")
    output = tmp_path / "bundle"
    few = ("--calibration-frames", "8", "--parity-steps", "8", "--force")
    result = CliRunner().invoke(app, ["export", JUMP_STEP, "--precision", "int4-weight", "--output", str(output), *few])
    assert result.exit_code == 0, result.output
    manifest = load_bundle(output).manifest
    assert manifest.source["checkpoint_sha256"] == checkpoint_sha256(folder / JUMP_STEP / "checkpoint")
    collected = "scripted experts in PlayTable D, 2 episodes of each of 2 tasks, action noise 0.3, seed 1000"
    assert manifest.source["demonstrations"] == collected
    assert manifest.calibration.dataset.startswith("playtable-D-experts-")
    assert "demonstration episodes of playtable-D-experts-" in manifest.parity.inputs
    stages: list[str] = []
    again = collecting.expert_demonstrations(lambda stage, *_: stages.append(stage))
    assert again.description == collected
    assert not stages, "they are found, not collected again"


def test_a_dry_run_collects_nothing_and_a_wrong_option_ends_before(folder: Path, tmp_path: Path) -> None:
    trained(folder / JUMP_STEP / "checkpoint")
    command = ["export", JUMP_STEP, "--output", str(tmp_path / "bundle"), "--precision"]
    result = CliRunner().invoke(app, [*command, "int8", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert CliRunner().invoke(app, [*command, "mixed"]).exit_code != 0
    assert not (tmp_path / "cache" / "rfedge").exists()


def test_a_policy_without_a_checkpoint_says_so(folder: Path) -> None:
    with raises(ArtifactError, f"policy {JUMP_STEP}", got="no checkpoint", expected="one in ...checkpoint"):
        find_checkpoint(Path(JUMP_STEP))
    assert find_checkpoint(folder) == folder


@pytest.mark.slow
def test_the_tool_ships_checkpoint_bundle_and_card(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load_tool("ship_policy")
    monkeypatch.setattr(tool, "FOLDER", folder)
    monkeypatch.setattr(tool, "PARITY_STEPS", 16)
    monkeypatch.setitem(THRESHOLDS, "int8", {})  # which a policy that nobody trained may miss
    source, data = trained(tmp_path / "checkpoint"), write_demonstrations(tmp_path / "data")
    tool.ship(JUMP_STEP, source, Demonstrations(data, "of a test"), progress=lambda *_: None)
    tool.write_card(JUMP_STEP)
    assert [path.name for path in folder.iterdir()] == [JUMP_STEP]
    shipped = find_checkpoint(Path(JUMP_STEP))
    stored = load_checkpoint(shipped)
    assert stored.metadata["storage"]["dtype"] == "float16", "of weights near zero it keeps three more bits"
    assert stored.metadata["storage"]["of_checkpoint_sha256"] == checkpoint_sha256(source)
    assert 0 < stored.metadata["storage"]["action_max_error"] < 0.01
    half = (shipped / "model.safetensors").stat().st_size
    assert half < 0.51 * (source / "model.safetensors").stat().st_size + 20_000
    before = load_checkpoint(source).policy.state_dict()
    for name, tensor in stored.policy.state_dict().items():
        assert tensor.dtype == before[name].dtype
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, before[name].half().float(), rtol=0, atol=0)
    bundle = load_bundle(folder / JUMP_STEP / "bundle")
    assert bundle.manifest.source == {
        "checkpoint_sha256": checkpoint_sha256(shipped),
        "name": "tiny",
        "demonstrations": "of a test",
    }
    card = (folder / JUMP_STEP / "MODEL_CARD.md").read_text()
    assert f"rfedge export {JUMP_STEP} --precision int4-weight" in card
    assert "MB in float16, action error" in card
    assert "Nothing yet." in card


def test_weights_beyond_fp16_are_stored_in_bf16(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load_tool("ship_policy")
    monkeypatch.setattr(tool, "PARITY_STEPS", 4)
    source = trained(tmp_path / "checkpoint")
    checkpoint = load_checkpoint(source)
    with torch.no_grad():
        checkpoint.policy.head.gripper[-1].bias.fill_(1e5)
    tool.save_checkpoint(source, checkpoint.policy, checkpoint.tokenizer, checkpoint.metadata, overwrite=True)
    storage = tool.store_checkpoint(source, tmp_path / "stored", write_demonstrations(tmp_path / "data"))
    assert storage["dtype"] == "bfloat16"
    assert np.isfinite(storage["action_max_error"])
    assert json.loads((tmp_path / "stored" / "config.json").read_text())["metadata"]["storage"] == storage


def test_every_checkpoint_in_the_package_is_small_and_its_bundle_is_of_it() -> None:
    for name in SHIPPED:
        path = policies.FOLDER / name / "checkpoint"
        if not path.is_dir():  # shipped as a bundle alone
            continue
        assert (path / "model.safetensors").stat().st_size <= 25_000_000
        bundle = load_bundle(policies.FOLDER / name / "bundle")
        assert bundle.manifest.source["checkpoint_sha256"] == checkpoint_sha256(path)
