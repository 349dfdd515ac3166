"""Pointing and a task probe beside imitation: they learn, resume, and leave no trace in a checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rfedge.errors import ConfigError
from rfedge.train import train_config, train_policy
from rfedge.train.config import TrainConfig
from tests.errors import raises
from tests.synthetic_demonstrations import write_demonstrations
from tests.train.test_loop import KilledError, assert_same_weights, kill_after, rows

_CHANGES = {"window": 4, "chunk_size": 2, "frame_stride": 2, "time_keeping": "carry"}


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("data"), episodes_per_task=2, num_frames=10)


def _config(demonstrations: Path, output: Path, **options: object) -> TrainConfig:
    pointing = {"pointing_weight": 1.0, "pointing_batch_size": 4, "light": 0.1, "trainable": "full", "task_weight": 0.05}
    values = {**pointing, "steps": 6, "batch_size": 2, "learning_rate": 1e-3, "head_first_steps": 0, "save_every": 2}
    return train_config("tiny", data=demonstrations, output=output, policy_changes=_CHANGES, **{**values, **options})


def test_a_stopped_run_ends_as_a_straight_one(demonstrations: Path, tmp_path: Path) -> None:
    train_policy(_config(demonstrations, tmp_path / "straight"))
    with pytest.raises(KilledError):
        train_policy(_config(demonstrations, tmp_path / "parts"), on_step=kill_after(5))
    train_policy(_config(demonstrations, tmp_path / "parts"))
    assert rows(tmp_path / "straight") == rows(tmp_path / "parts")
    assert_same_weights(tmp_path / "straight", tmp_path / "parts")


def test_it_reaches_the_tower_and_stays_out_of_the_checkpoint(demonstrations: Path, tmp_path: Path) -> None:
    train_policy(_config(demonstrations, tmp_path / "run"))
    train_policy(_config(demonstrations, tmp_path / "without", pointing_weight=0.0, task_weight=0.0))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["pointing_loss"] > 0 and line["task_loss"] > 0 for line in lines if "loss" in line)
    queries = load_file(tmp_path / "run" / "state" / "step-0000006" / "parameters.safetensors")
    extra = {name for name in queries if name.startswith(("pointing.", "task_probe."))}
    assert {name.split(".")[0] for name in extra} == {"pointing", "task_probe"}
    tensors, without = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("run", "without"))
    assert tensors.keys() == without.keys() == queries.keys() - extra
    assert not torch.equal(tensors["backbone.vision.conv1.weight"], without["backbone.vision.conv1.weight"])


def test_a_frozen_tower_cannot_learn_to_point(demonstrations: Path, tmp_path: Path) -> None:
    with raises(ConfigError, "pointing-weight", got="trainable freeze-vision", expected="trainable full..."):
        _config(demonstrations, tmp_path, trainable="freeze-vision")
