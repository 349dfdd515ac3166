"""Pointing beside imitation: while a vision tower learns to act, it goes on learning where things are.

Actions alone teach a small tower little and let it forget what `rfedge pretrain` taught it. Every step of the whole policy
therefore also learns a batch of single frames, with the loss of `rfedge.train.pretraining.pointing`.
"""

from __future__ import annotations

import torch

from rfedge.data.scene.questions import SceneFacts
from rfedge.data.windows import SamplerState, WindowSampler
from rfedge.errors import ConfigError
from rfedge.model import RoboFlamingo
from rfedge.train.config import TrainConfig
from rfedge.train.distributed import Processes
from rfedge.train.pretraining.scene_batches import SceneBatch, SceneLoader, SceneQuestions, encode_images
from rfedge.train.sources import TrainingData

# Name of the queries as a part of the policy: they learn and are saved with it, and are in no checkpoint.
POINTING = "pointing"
# Separates the order of these frames from that of the windows, which comes from the same seed.
_ORDER_STREAM = 7


def pointing_loader(
    config: TrainConfig, sources: TrainingData, state: SamplerState, step: int, processes: Processes
) -> SceneLoader:
    """Load the frames that the queries point at, from a state on."""
    if processes.world_size > 1:
        remedy = "Leave --pointing-weight out, or train in one process."
        raise ConfigError("pointing-weight", got=f"{processes.world_size} processes", expected="one", remedy=remedy)
    index = sources.training
    facts = SceneFacts.of(sources.dataset, sources.cache, index)
    frames = SceneQuestions(index, sources.cache, facts, sources.tokenizer, has_texts=False)
    sampler = WindowSampler(len(index), config.pointing_batch_size, config.seed + _ORDER_STREAM, state)
    return SceneLoader(frames, sampler, step=step)


def pointing_loss(policy: RoboFlamingo, batch: SceneBatch, light: float) -> torch.Tensor:
    """Return the loss of the policy's queries, which point at what the frames show."""
    loss: torch.Tensor = policy.get_submodule(POINTING)(encode_images(policy, batch, light), batch).loss
    return loss
