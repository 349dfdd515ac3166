"""Loss, trainable groups, schedule, shifts and options, each against a value worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rfedge.config import preset
from rfedge.envs.tasks import INSTRUCTIONS
from rfedge.errors import ConfigError
from rfedge.model import build_policy
from rfedge.train import train_config
from rfedge.train.batches.loader import GRIPPER_SHIFT_PX, STATIC_SHIFT_PX, ImageShifts, sample_offsets, shift_images
from rfedge.train.compute_context import plain_attention
from rfedge.train.config import change_policy, recipe_for
from rfedge.train.losses import policy_loss
from rfedge.train.run import learning_rate_factor
from rfedge.train.sources import open_training_data
from rfedge.train.trainable import freeze, optimizer_groups
from tests.errors import raises


def test_loss_by_hand() -> None:
    pose = torch.zeros(1, 2, 1, 6)
    actions = torch.zeros(1, 2, 1, 7)
    actions[0, 0, 0] = torch.tensor([0.6, 0, 0, 0, 0, 0, 1.0])
    actions[0, 1, 0] = 99.0  # masked out: must not matter
    logit = torch.zeros(1, 2, 1)
    mask = torch.tensor([[[True], [False]]])
    parts = policy_loss(pose, logit, actions, mask, kind="huber", gripper_weight=0.1)
    assert float(parts.pose) == pytest.approx(0.5 * 0.36 / 6)
    assert float(parts.gripper) == pytest.approx(math.log(2))
    assert float(parts.total) == pytest.approx(0.03 + 0.1 * math.log(2))
    assert float(policy_loss(pose, logit, actions, mask, kind="mse", gripper_weight=0.0).total) == pytest.approx(0.06)


def test_gripper_accuracy_counts_recorded_actions_only() -> None:
    actions = torch.ones(1, 1, 4, 7)
    actions[..., 6] = torch.tensor([1.0, 1.0, -1.0, -1.0])
    logit = torch.tensor([[[2.0, -2.0, -2.0, 2.0]]])
    mask = torch.tensor([[[True, True, True, False]]])
    parts = policy_loss(torch.zeros(1, 1, 4, 6), logit, actions, mask, kind="mse", gripper_weight=1.0)
    assert float(parts.gripper_accuracy) == pytest.approx(2 / 3)


def test_only_matrices_of_the_gated_cross_attention_decay() -> None:
    policy = build_policy(preset("tiny"), seed=0)
    decayed, others, head = optimizer_groups(freeze(policy, "paper"), weight_decay=0.1, head_rate=10.0)
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert all("cross_attention" in names[id(parameter)] for parameter in decayed["params"])
    assert not any("gate" in names[id(parameter)] or "norm" in names[id(parameter)] for parameter in decayed["params"])
    assert all(names[id(parameter)].startswith("head.") for parameter in head["params"])
    assert [group["rate_factor"] for group in (decayed, others, head)] == [1.0, 1.0, 10.0]
    assert len(optimizer_groups(freeze(policy, "head"), weight_decay=0.1, head_rate=1.0)) == 1


def test_schedule() -> None:
    constant = [learning_rate_factor("constant", step=s, warmup_steps=4, progress=s / 1000) for s in (0, 1, 3, 500, 1000)]
    assert constant == pytest.approx([0.25, 0.5, 1.0, 1.0, 1.0])
    assert learning_rate_factor("cosine", step=50, warmup_steps=0, progress=0.5) == pytest.approx(0.5)
    assert learning_rate_factor("cosine", step=99, warmup_steps=0, progress=1.5) == 0.0
    # A warm-up longer than the run ends at a tenth of it.
    assert learning_rate_factor("constant", step=10, warmup_steps=5000, progress=0.1) == 1.0


def test_shifts_move_whole_windows_and_repeat_the_border() -> None:
    assert (STATIC_SHIFT_PX, GRIPPER_SHIFT_PX) == (9, 2)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 12, 12, 3), np.uint8)
    offsets = sample_offsets(2, 3, 2, np.random.default_rng(1), "window")
    shifted = shift_images(images, 2, offsets)
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    for window in range(2):
        matches = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if (shifted[window] == padded[window, :, row : row + 12, column : column + 12]).all()
        ]
        assert len(matches) == 1  # one shift for all frames
    np.testing.assert_array_equal(shifted[1:], shift_images(images[1:], 2, offsets[1:]))  # a part of a batch
    assert ImageShifts.sample(2, 3, np.random.default_rng(1), "none") is None
    frames = np.repeat(images[:, :1], 8, axis=1)
    per_frame = shift_images(frames, 2, sample_offsets(2, 8, 2, np.random.default_rng(1), "frame"))
    assert any((per_frame[0, 0] != frame).any() for frame in per_frame[0, 1:])


def test_recipes(tmp_path: Path) -> None:
    paper = train_config("M-3B", data=tmp_path, output=tmp_path, policy_changes={}, batch_size=12)
    assert paper.learning_rate == pytest.approx(2e-4)  # 1e-4 at 6 windows
    assert (paper.gripper_weight, paper.warmup_steps, paper.schedule, paper.trainable) == (0.01, 5000, "constant", "paper")
    assert (paper.weight_decay, paper.gradient_clip, paper.loss, paper.epochs) == (0.1, 1.0, "huber", 5.0)
    small = train_config("tiny", data=tmp_path, output=tmp_path, policy_changes={}, steps=3, gripper_weight=0.2)
    assert (small.trainable, small.gripper_weight, small.epochs, small.policy.window) == ("full", 0.2, None, 12)
    assert recipe_for("tiny") == recipe_for("playtable-small") != recipe_for("M-3B")


def test_the_recipe_of_a_policy_that_has_learnt_to_see() -> None:
    """However long ago: through all the checkpoints that a run descends from."""
    seeing = {"pretraining": {"steps": 10}}
    recipe = recipe_for("playtable-small", seeing)
    assert recipe == recipe_for("playtable-small", {"training": {}, "initial": {"training": {}, "initial": seeing}})
    assert (recipe.trainable, recipe.head_first_steps) == ("freeze-vision", 0)
    assert recipe_for("playtable-small", {"training": {}, "initial": None}) == recipe_for("playtable-small") != recipe
    assert recipe_for("M-3B", seeing) == recipe_for("M-3B")


def test_instructions_never_shown_still_fit_the_smallest_policy(demonstrations: Path, tmp_path: Path) -> None:
    """The demonstrations say two short things; the benchmark's words must not be spelt in letters all the same."""
    config = train_config("tiny", data=demonstrations, output=tmp_path, policy_changes={}, steps=1)
    tokenizer = open_training_data(config, None, None).tokenizer
    assert tokenizer.vocab_size <= config.policy.decoder.vocab_size
    for instruction in INSTRUCTIONS.values():
        tokenizer.encode(instruction)


def test_a_stride_brings_its_chunk() -> None:
    changed = change_policy(preset("tiny"), frame_stride=5, time_keeping="carry", window=None)
    assert (changed.frame_stride, changed.chunk_size, changed.time_keeping, changed.window) == (5, 5, "carry", 12)
    assert change_policy(preset("tiny"), frame_stride=2, chunk_size=4).chunk_size == 4
    with raises(ConfigError, expected="frame_stride: got 5, expected at most chunk_size (3)..."):
        change_policy(preset("tiny"), frame_stride=5, chunk_size=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("loss", "l2"), ("trainable", "all"), ("steps", 0), ("learning_rate", -1.0)),
        *(("validation_fraction", 1.0), ("data_share", 0.0)),
    ],
)
def test_options_out_of_range(name: str, value: object, tmp_path: Path) -> None:
    with raises(ConfigError, name, got=repr(value)):
        train_config("tiny", data=tmp_path, output=tmp_path, policy_changes={}, **{name: value})


def test_policies_that_cannot_be_trained(tmp_path: Path) -> None:
    with raises(ConfigError, "time_keeping", got="'clock'"):
        train_config("tiny", data=tmp_path, output=tmp_path, policy_changes={"time_keeping": "clock"})
    with raises(ConfigError, "preset", got="'tyni'", expected="...(did you mean 'tiny'?)"):
        train_config("tyni", data=tmp_path, output=tmp_path, policy_changes={})


def test_attention_in_plain_matmuls_says_the_same_and_is_left_behind() -> None:
    query, key, value = torch.randn(3, 2, 4, 16, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    fused = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed(), torch.backends.cuda.flash_sdp_enabled()
    with plain_attention(when=True):
        assert not torch.backends.cuda.flash_sdp_enabled()
        plain = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert (torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed(), torch.backends.cuda.flash_sdp_enabled()) == before
    torch.testing.assert_close(plain, fused, atol=0.02, rtol=0.02)
    with plain_attention(when=False):
        assert torch.backends.cuda.flash_sdp_enabled() == before[1]
