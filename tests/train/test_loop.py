"""A run learns, stops when told, goes on bit for bit after a kill, and ends in a checkpoint that loads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rfedge.config import preset
from rfedge.data import CalvinDataset, FrameCache, WindowIndex
from rfedge.errors import ArtifactError, BackendUnavailableError, ConfigError, DatasetError, GateError
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model import build_policy, load_checkpoint
from rfedge.train import TrainConfig, TrainingStep, train_config, train_policy
from rfedge.train.batches.features import FeatureTable
from rfedge.train.batches.loader import InstructionTable, batch_tensors, window_forward
from rfedge.train.losses import policy_loss
from rfedge.train.run import TrainingRun
from rfedge.train.sources import open_training_data, start_policy
from tests.errors import raises
from tests.synthetic_demonstrations import write_demonstrations
from tests.tolerances import assert_same_in_fp32, policy_terms
from tests.whole_windows import forward_window

Configure = Callable[..., TrainConfig]


class KilledError(Exception):
    pass


def kill_after(step: int) -> Callable[[TrainingStep], None]:
    def on_step(report: TrainingStep) -> None:
        if report.step == step:
            raise KilledError

    return on_step


def rows(output: Path, *, ignore: str = "frames_per_second") -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without the one number that is a time."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != ignore} for line in lines]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoint" / "model.safetensors")


def assert_same_weights(left: Path, right: Path) -> None:
    first, second = weights(left), weights(right)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("stride", [1, 5])
def test_only_real_frames_run_and_the_outcome_is_the_models_own(demonstrations: Path, stride: int) -> None:
    dataset = CalvinDataset.open(demonstrations)
    config = preset("tiny").model_copy(update={"window": 4, "frame_stride": stride, "chunk_size": stride})
    index = WindowIndex(dataset.segments, window=4, frame_stride=stride, chunk_size=stride)
    tokenizer = InstructionTokenizer.from_corpus(
        dataset.instructions, vocab_size=400, text_length=config.decoder.text_length
    )
    batch = batch_tensors(index, FrameCache.open(dataset), InstructionTable(tokenizer, index), [0, 8, 9, 35])
    assert batch.num_frames < batch.frame_mask.numel()
    policy = build_policy(config, seed=0).eval()
    with torch.no_grad():
        pose, logit = window_forward(policy, batch)
        whole_pose, whole_logit = forward_window(
            policy, batch.image_static, batch.image_gripper, batch.token_ids, batch.text_mask
        )
    real = batch.frame_mask
    assert_same_in_fp32(pose[real], whole_pose[real], policy_terms(config))
    assert_same_in_fp32(logit[real], whole_logit[real], policy_terms(config))


def test_what_fills_a_window_does_not_reach_the_gradient(demonstrations: Path) -> None:
    dataset = CalvinDataset.open(demonstrations)
    index = WindowIndex(dataset.segments, window=4)
    tokenizer = InstructionTokenizer.from_corpus(dataset.instructions, vocab_size=400, text_length=16)
    batch = batch_tensors(index, FrameCache.open(dataset), InstructionTable(tokenizer, index), [8])
    gradients = []
    for fill in (0, 255):
        policy = build_policy(preset("tiny"), seed=0).eval()
        batch.image_static[~batch.frame_mask] = fill
        batch.actions[~batch.action_mask] = float(fill)
        pose, logit = window_forward(policy, batch)
        parts = policy_loss(pose, logit, batch.actions, batch.action_mask, kind="huber", gripper_weight=0.05)
        parts.total.backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_straight_equals_killed_and_resumed(configure: Configure, tmp_path: Path) -> None:
    whole = train_policy(configure(tmp_path / "whole"))
    parts = configure(tmp_path / "parts", save_every=3)
    with pytest.raises(KilledError):
        train_policy(parts, on_step=kill_after(5))  # two steps beyond the state at 3: they are lost and done again
    result = train_policy(parts)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    for name in ("first_loss", "last_loss", "num_averaged", "validation_loss", "steps", "epochs"):
        assert getattr(result, name) == getattr(whole, name), name


def test_another_seed_gives_other_weights(configure: Configure, tmp_path: Path) -> None:
    train_policy(configure(tmp_path / "a", steps=1))
    train_policy(configure(tmp_path / "b", steps=1, seed=1))
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "a", tmp_path / "b")


def test_training_leaves_the_callers_random_state_alone(configure: Configure, tmp_path: Path) -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    threads = torch.get_num_threads()
    train_policy(configure(tmp_path / "a", steps=1, num_threads=2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_the_loss_falls_and_the_checkpoint_loads(configure: Configure, tmp_path: Path) -> None:
    reports: list[TrainingStep] = []
    result = train_policy(configure(tmp_path / "run", steps=40, learning_rate=1e-3), on_step=reports.append)
    assert result.last_loss < result.first_loss
    assert result.num_averaged == 20
    assert [report.step for report in reports] == list(range(1, 41))
    assert reports[-1].share == 1.0
    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint.metadata["result"]["last_loss"] == result.last_loss
    assert checkpoint.metadata["dataset"]["tasks"] == ["close_drawer", "open_drawer"]
    assert checkpoint.metadata["dataset"]["scenes"] == ["D"]
    assert checkpoint.metadata["initial"] is None
    assert not {"data", "output", "cache", "initial_checkpoint"} & checkpoint.metadata["training"].keys(), "no places"
    assert checkpoint.config.window == 4
    checkpoint.tokenizer.encode("pull the drawer open")
    pose_losses = [row["pose_loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert np.mean(pose_losses[-10:]) < 0.7 * np.mean(pose_losses[:10])
    losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert np.mean(losses[:20]) == pytest.approx(result.first_loss)
    assert np.mean(losses[-20:]) == pytest.approx(result.last_loss)
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_jump_step_training(configure: Configure, tmp_path: Path) -> None:
    result = train_policy(configure(tmp_path / "run", {"frame_stride": 5, "time_keeping": "carry"}, steps=2))
    config = load_checkpoint(result.checkpoint).config
    assert (config.frame_stride, config.chunk_size, config.time_keeping) == (5, 5, "carry")


@pytest.mark.parametrize("head_first_steps", [0, 2])
def test_minutes_that_pass_before_the_first_step_leave_one(
    configure: Configure, tmp_path: Path, head_first_steps: int
) -> None:
    run = configure(tmp_path / "run", steps=None, minutes=1e-9, head_first_steps=head_first_steps)
    result = train_policy(run)
    assert result.steps == 1
    assert np.isfinite([result.first_loss, result.last_loss]).all()


def test_minutes_end_a_run(configure: Configure, tmp_path: Path) -> None:
    result = train_policy(configure(tmp_path / "run", steps=None, minutes=0.02))
    assert result.steps >= 1
    assert result.checkpoint.is_dir()
    again = train_policy(configure(tmp_path / "run", steps=None, minutes=0.02))
    assert again.steps == result.steps  # resumed parts count, so the time is over


def test_epochs_end_a_run(configure: Configure, tmp_path: Path) -> None:
    result = train_policy(configure(tmp_path / "run", steps=None, epochs=0.2, validation_fraction=0.0))
    assert result.steps == 4  # 0.2 * 60 windows / 3
    assert result.validation_loss is None


def test_states_are_few_and_no_resume_starts_over(configure: Configure, tmp_path: Path) -> None:
    train_policy(configure(tmp_path / "run", save_every=1, keep_states=2))
    assert sorted(path.name for path in (tmp_path / "run" / "state").iterdir()) == ["step-0000005", "step-0000006"]
    with raises(ConfigError, "seed of the run in ...", got=1, expected="0, with which it was started"):
        train_policy(configure(tmp_path / "run", seed=1))
    result = train_policy(configure(tmp_path / "run", seed=1, resume=False, steps=2))
    assert result.steps == 2
    assert [row["step"] for row in rows(tmp_path / "run") if "loss" in row] == [1, 2]


def test_a_finished_run_can_be_made_longer(configure: Configure, tmp_path: Path) -> None:
    train_policy(configure(tmp_path / "run", steps=2))
    assert train_policy(configure(tmp_path / "run", steps=4)).steps == 4


def test_other_frames_are_refused_on_resume(configure: Configure, tmp_path: Path, demonstrations: Path) -> None:
    train_policy(configure(tmp_path / "run", steps=1))
    shutil.copytree(demonstrations, tmp_path / "copy")
    same = configure(tmp_path / "run", steps=2).model_copy(update={"data": tmp_path / "copy"})
    assert train_policy(same).steps == 2  # a copy is the same data
    folder = tmp_path / "copy" / "training"
    shutil.copy(folder / "episode_0000001.npz", folder / "episode_0000000.npz")
    with raises(ConfigError, "frames of the run..."):
        train_policy(same)


@pytest.mark.parametrize("name", ["parameters.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_state_is_named(configure: Configure, tmp_path: Path, name: str) -> None:
    train_policy(configure(tmp_path / "run", steps=1))
    path = tmp_path / "run" / "state" / "step-0000001" / name
    path.write_bytes(path.read_bytes()[:20])
    with raises(ArtifactError, "training state ...step-0000001...", remedy="...go on from the one before..."):
        train_policy(configure(tmp_path / "run", steps=2))


def test_a_checkpoint_can_be_trained_further(configure: Configure, tmp_path: Path, demonstrations: Path) -> None:
    first = train_policy(configure(tmp_path / "first", steps=1))
    further = train_config(
        str(first.checkpoint), data=demonstrations, output=tmp_path / "b", policy_changes={}, steps=1, learning_rate=1e-9
    )
    second = train_policy(further)
    before, after = weights(tmp_path / "first"), weights(tmp_path / "b")
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert load_checkpoint(second.checkpoint).config == load_checkpoint(first.checkpoint).config
    assert second.initialised == ()


@pytest.mark.parametrize(
    ("changes", "initialised"),
    [
        ({"chunk_size": 5}, ("head.gripper", "head.pose")),
        ({"head": "mlp"}, ("head.gripper", "head.pose", "head.trunk")),
        ({"head": "gpt", "proprioception": True}, None),
        ({"fusion": "two_way"}, ("head.rnn",)),
        ({"fusion": "pre", "media_frames": 2}, ("backbone.frame_embedding",)),
    ],
)
def test_a_checkpoint_can_be_trained_into_another_member(
    changes: dict[str, Any], initialised: tuple[str, ...] | None, configure: Configure, tmp_path: Path, demonstrations: Path
) -> None:
    """Everything that fits is kept, bit for bit; the rest is sampled and said."""
    first = train_policy(configure(tmp_path / "first", steps=1))
    other = train_config(
        str(first.checkpoint),
        data=demonstrations,
        output=tmp_path / "b",
        policy_changes=changes,
        steps=1,
        learning_rate=1e-30,
        trainable="head",
    )
    second = train_policy(other)
    assert initialised is None or second.initialised == initialised
    before, after = weights(tmp_path / "first"), weights(tmp_path / "b")
    kept = [name for name in before if name in after and before[name].shape == after[name].shape and "head" not in name]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert len(kept) > 60


def test_missing_data_and_devices(configure: Configure, tmp_path: Path) -> None:
    config = configure(tmp_path / "run")
    with raises(DatasetError, got="no folder", expected="a CALVIN dataset"):
        train_policy(config.model_copy(update={"data": tmp_path / "nowhere"}))
    with raises(ConfigError, "device", got="'gpu'", expected="cpu, cuda or cuda:N"):
        train_policy(config.model_copy(update={"device": "gpu"}))
    if not torch.cuda.is_available():
        with raises(BackendUnavailableError, "device", got="'cuda'"):
            train_policy(config.model_copy(update={"device": "cuda"}))


def test_the_head_learns_first_and_the_backbone_joins_in(configure: Configure, tmp_path: Path) -> None:
    options = {"head_first_steps": 3, "head_first_batch_size": 4, "save_every": 1, "keep_states": 9, "validate_every": 0}
    train_policy(configure(tmp_path / "run", steps=5, **options))
    states = [load_file(tmp_path / "run" / "state" / f"step-{step:07d}" / "parameters.safetensors") for step in (1, 3, 5)]
    for name in states[0]:
        moves_early = not torch.equal(states[0][name], states[1][name])
        assert moves_early == name.startswith("head."), name
    moved = {name for name in states[1] if not torch.equal(states[1][name], states[2][name])}
    assert any(name.startswith("backbone.vision") for name in moved)
    assert "embedding.weight" in moved


@pytest.mark.parametrize("killed_after", [2, 3, 4])
def test_head_first_resumes_bit_for_bit(configure: Configure, tmp_path: Path, killed_after: int) -> None:
    options = {"head_first_steps": 3, "head_first_batch_size": 4, "save_every": 1, "validate_every": 0}
    train_policy(configure(tmp_path / "straight", steps=6, **options))
    with pytest.raises(KilledError):
        train_policy(configure(tmp_path / "killed", steps=6, **options), on_step=kill_after(killed_after))
    train_policy(configure(tmp_path / "killed", steps=6, **options))
    assert_same_weights(tmp_path / "straight", tmp_path / "killed")
    assert rows(tmp_path / "straight") == rows(tmp_path / "killed")


def test_cached_features_are_those_of_the_window(configure: Configure, tmp_path: Path) -> None:
    for changes in ({}, {"frame_stride": 3, "chunk_size": 3}):
        config = configure(tmp_path / "run", changes, augmentation="none")
        start = start_policy(config)
        policy, tokenizer = start.policy, start.tokenizer
        policy.eval()
        sources = open_training_data(config, tokenizer, None)
        table = FeatureTable.build(policy, sources.training, sources.cache, sources.table, torch.device("cpu"))
        chosen = [0, 7, len(sources.training) - 1]
        cached, direct = table.batch(chosen), batch_tensors(sources.training, sources.cache, sources.table, chosen)
        with torch.no_grad():
            pose, logit = window_forward(policy, direct)
            cached_pose, cached_logit = policy.head.unroll(cached.features)
        real = direct.frame_mask
        assert_same_in_fp32(cached_pose[real], pose[real], policy_terms(policy.config))
        assert_same_in_fp32(cached_logit[real], logit[real], policy_terms(policy.config))
        assert torch.equal(cached.actions, direct.actions)
        assert torch.equal(cached.action_mask, direct.action_mask)


def test_rate_and_camera_geometry_come_from_the_data(demonstrations: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(demonstrations, data)
    assert train_config("tiny", data=data, output=tmp_path / "run", policy_changes={}).policy.control_hz == 30.0
    (data / "conversion.json").write_text(json.dumps({"frequency_hz": 10.0, "options": {"resize": "pad"}}))
    config = train_config("tiny", data=data, output=tmp_path / "run", policy_changes={}, steps=1, head_first_steps=0)
    assert (config.policy.control_hz, config.policy.resize) == (10.0, "pad")
    train_policy(config)
    checkpoint = load_checkpoint(tmp_path / "run/checkpoint")
    assert (checkpoint.config.control_hz, checkpoint.config.resize) == (10.0, "pad")
    # Trained on with data of another rate, the policy has that one.
    again = train_config(str(tmp_path / "run/checkpoint"), data=demonstrations, output=tmp_path / "b", policy_changes={})
    assert again.policy.control_hz == 30.0


def test_training_never_ends_well_with_nan(configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    train_policy(configure(tmp_path / "whole", save_every=3))
    config = configure(tmp_path / "run", save_every=0)
    real, calls = TrainingRun.descend, list[int]()

    def poisoned(run: TrainingRun) -> float:
        calls.append(1)
        if len(calls) == 4:
            for parameter in run.trained:
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))
        return real(run)

    monkeypatch.setattr(TrainingRun, "descend", poisoned)
    with raises(GateError, "step 4", got="loss ..., gradient norm nan", expected="finite numbers"):
        train_policy(config)
    assert not (tmp_path / "run/checkpoint").exists()
    (state,) = sorted((tmp_path / "run/state").iterdir())
    kept = load_file(state / "parameters.safetensors")
    for name, tensor in load_file(tmp_path / "whole/state/step-0000003/parameters.safetensors").items():
        assert torch.equal(kept[name], tensor), "the weights of the last good step"
    assert train_policy(config).steps == 6, "it goes on from there"


def test_demonstrations_of_one_frame_say_what_is_missing(tmp_path: Path) -> None:
    data = write_demonstrations(tmp_path / "data", episodes_per_task=1, num_frames=1)
    config = train_config("tiny", data=data, output=tmp_path / "run", policy_changes={}, steps=2, validation_fraction=0.5)
    with raises(DatasetError, got="1 frames to learn from", expected="two or more that differ"):
        train_policy(config)
    assert not (tmp_path / "run/checkpoint").exists()
