"""Pointing beside imitation: while a vision tower learns to act, it goes on learning where things are.

Actions alone teach a small tower little and let it forget what `rfedge pretrain` taught it. Every step of the whole policy
therefore also learns a batch of single frames, with the loss of `rfedge.train.pretraining.pointing`.
"""

from __future__ import annotations

from types import TracebackType

import torch

from rfedge.data.scene.questions import SceneFacts
from rfedge.data.windows import SamplerState, WindowSampler
from rfedge.errors import ConfigError
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model import RoboFlamingo
from rfedge.train.config import TrainConfig
from rfedge.train.distributed import Processes
from rfedge.train.pretraining.pointing import Pointing
from rfedge.train.pretraining.scene_batches import SceneLoader, SceneQuestions, encode_images
from rfedge.train.sources import TrainingData

# Name of the queries as a part of the policy: they learn and are saved with it, and are in no checkpoint.
POINTING = "pointing"
# Separates the order of these frames from that of the windows, which comes from the same seed.
_ORDER_STREAM = 7


class SceneTraining:
    """The frames that the queries point at, from a state on; use it as a context manager.

    Raises:
        ConfigError: there are several processes.
        DatasetError: the demonstrations do not say which scene their frames show.
    """

    def __init__(
        self, config: TrainConfig, sources: TrainingData, state: SamplerState, step: int, processes: Processes
    ) -> None:
        if processes.world_size > 1:
            remedy = "Leave --pointing-weight out, or train in one process."
            raise ConfigError("pointing-weight", got=f"{processes.world_size} processes", expected="one", remedy=remedy)
        self.config = config
        index = sources.training
        facts = SceneFacts.of(sources.dataset, sources.cache, index)
        assert isinstance(sources.tokenizer, InstructionTokenizer)
        frames = SceneQuestions(index, sources.cache, facts, sources.tokenizer, has_texts=False)
        sampler = WindowSampler(len(index), config.pointing_batch_size, config.seed + _ORDER_STREAM, state)
        self._loader = SceneLoader(frames, sampler, step=step)

    @staticmethod
    def attach(policy: RoboFlamingo, seed: int) -> None:
        """Give a policy the queries, as a part of it that `rfedge.train.trainable` knows."""
        policy.add_module(POINTING, Pointing.of(policy, seed))

    def loss(self, policy: RoboFlamingo) -> tuple[torch.Tensor, SamplerState]:
        """Return the loss of the next frames, weighted, and where their order stands after them."""
        batch, state = self._loader.next()
        pointing = policy.get_submodule(POINTING)
        device = next(policy.parameters()).device
        batch = batch.to(device)
        loss: torch.Tensor = pointing(encode_images(policy, batch, self.config.light), batch).loss
        return self.config.pointing_weight * loss, state

    def __enter__(self) -> SceneTraining:
        self._loader.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loader.__exit__(kind, error, traceback)
