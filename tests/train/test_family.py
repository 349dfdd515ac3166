"""Every head, fusion and memory learns, with and without a first part on cached features, and resumes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rfedge.config import head_of_kind, preset
from rfedge.data import CalvinDataset
from rfedge.data.frame_cache import FrameCache
from rfedge.data.windows import WindowIndex
from rfedge.errors import ConfigError
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model import build_policy, load_checkpoint
from rfedge.train import TrainConfig, train_policy
from rfedge.train.batches.features import FeatureTable
from rfedge.train.batches.loader import InstructionTable, batch_tensors, window_features, window_forward
from rfedge.train.sources import start_policy
from tests.errors import raises
from tests.model.family import CHANGES, member
from tests.tolerances import assert_same_in_fp32, backbone_terms, policy_terms
from tests.whole_windows import forward_window


@pytest.mark.parametrize("name", CHANGES)
def test_the_training_path_equals_the_plain_one(name: str, demonstrations: Path, tmp_path: Path) -> None:
    """Without the backbone on what only fills a window or a text; and the feature table holds the same features."""
    config = member(name)
    policy = build_policy(config, seed=0).eval()
    dataset = CalvinDataset.open(demonstrations)
    cache = FrameCache.open(dataset, folder=tmp_path / "cache")
    index = WindowIndex(dataset.segments, window=config.window, chunk_size=config.chunk_size)
    tokenizer = InstructionTokenizer.from_corpus(dataset.instructions, vocab_size=400, text_length=16)
    table = InstructionTable(tokenizer, index)
    chosen = [0, 7, 13]  # the start of an episode, its end, the middle of the next
    batch = batch_tensors(index, cache, table, chosen)
    with torch.inference_mode():
        pose, logit = window_forward(policy, batch)
        robot_state = batch.robot_state if config.proprioception else None
        plain = forward_window(
            policy, batch.image_static, batch.image_gripper, batch.token_ids, batch.text_mask, robot_state
        )
        real = batch.frame_mask
        assert_same_in_fp32(pose[real], plain[0][real], policy_terms(config))
        assert_same_in_fp32(logit[real], plain[1][real], policy_terms(config))
        features, places = window_features(policy, batch)
        built = FeatureTable.build(policy, index, cache, table, torch.device("cpu")).batch(chosen).features.flatten(0, 1)
    # A table's feature knows all that its segment has; a window's only what the window has. Equal from the start on.
    first_window = places < config.window
    assert_same_in_fp32(features[first_window], built[places][first_window], backbone_terms(config))


@pytest.mark.parametrize("head_first_steps", [0, 4])
@pytest.mark.parametrize("name", ["gpt", "mlp-with-history", "two-way", "proprioception"])
def test_it_learns(name: str, head_first_steps: int, configure: Callable[..., TrainConfig], tmp_path: Path) -> None:
    changes = {key: value for key, value in CHANGES[name].items() if key != "head"}
    changes["head"] = head_of_kind(CHANGES[name].get("head", "lstm"), preset("tiny").head)
    rates = {"learning_rate": 1e-3, "head_rate": 1.0}
    config = configure(tmp_path / "run", changes, head_first_steps=head_first_steps, steps=24, **rates)
    result = train_policy(config)
    assert result.last_loss < result.first_loss
    assert load_checkpoint(result.checkpoint).config == config.policy


def test_a_gpt_head_keeps_its_window(configure: Callable[..., TrainConfig], tmp_path: Path) -> None:
    head = head_of_kind("gpt", preset("tiny").head)
    config = configure(tmp_path / "run", {"head": head}, steps=1)
    checkpoint = train_policy(config).checkpoint
    other = config.model_copy(
        update={"initial_checkpoint": checkpoint, "policy": config.policy.model_copy(update={"window": 6})}
    )
    with raises(ConfigError, "window", got=6, expected="4, that of ..."):
        start_policy(other)
