"""Vision-language pre-training on frames of demonstrations: the backbone learns to say where things are.

RoboFlamingo (section 5.3) starts from weights that others trained on pictures and words; presets that start from nothing
learn here, from `rfedge.data.scene.questions` and `rfedge.train.pretraining.pointing`. The head is not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import nn

from rfedge.data.scene.questions import QUESTION_WORDS, STEP_M, SceneFacts
from rfedge.data.statistics import evenly_spaced
from rfedge.data.windows import WindowIndex, WindowSampler
from rfedge.jobs.progress import StageProgress
from rfedge.model import RoboFlamingo, save_checkpoint
from rfedge.model.checkpoint import HEAD_IS_UNTRAINED
from rfedge.train.batches.wording import Grammar, Wording
from rfedge.train.compute_context import ComputeContext, torch_settings
from rfedge.train.distributed import Processes
from rfedge.train.pretraining.config import PretrainConfig
from rfedge.train.pretraining.pointing import (
    Pointing,
    PointingScore,
    SceneBatch,
    SceneQuestions,
    SceneScore,
    encode_images,
    number_ids,
    scene_loader,
    scene_score,
)
from rfedge.train.result import RunResult, TrainingStep
from rfedge.train.run import TrainingRun, claimed_by_first
from rfedge.train.sources import open_training_data, start_policy
from rfedge.train.state import resume_weights
from rfedge.train.stopping import TrainingStop

_VALIDATION_SEED: Final = 12345
_BETAS: Final = (0.9, 0.98)
_MM_PER_M: Final = 1000.0


@dataclass(frozen=True, kw_only=True)
class PretrainResult(RunResult):
    """Results of `pretrain_policy`; `validation` has metrics of the held-out frames at the end, and is empty without any."""

    num_frames: int
    num_parameters: int
    validation: dict[str, float]


def pretrain_policy(
    config: PretrainConfig,
    *,
    grammar: Grammar | None = None,
    progress: StageProgress | None = None,
    on_step: Callable[[TrainingStep], None] | None = None,
    stop: TrainingStop | None = None,
) -> PretrainResult:
    """Train until the first of steps and minutes is reached, and write `output/checkpoint`; goes on where it was stopped.

    Raises:
        DatasetError: the demonstrations are damaged, or do not say what their frames show.
        ConfigError: `output` has a state of a run with other options, or `grammar` is missing or lacks a task.
        ArtifactError: that state is damaged, another run writes to `output`, or the disk has no room.
    """
    processes = Processes()
    with claimed_by_first(config.output, processes), torch_settings(config, torch.device("cpu")):
        start = start_policy(config, keep_untrained_head=True)
        words = QUESTION_WORDS * 2
        sources = open_training_data(
            config, start.tokenizer, progress, processes, grammar, single_frames=True, other_words=words
        )
        policy, tokenizer, cache = start.policy, sources.tokenizer, sources.cache

        def questions(index: WindowIndex, wording: Wording | None = None) -> SceneQuestions:
            facts, has_texts = SceneFacts.of(sources.dataset, cache, index), config.language_weight > 0
            return SceneQuestions(index, cache, facts, tokenizer, wording=wording, has_texts=has_texts)

        pointing = Pointing.of(policy, config.seed)
        learner = nn.ModuleDict({"policy": policy, "pointing": pointing})
        trained = [one for name, one in learner.named_parameters() if not name.startswith("policy.head.")]
        groups = [
            {"params": [one for one in trained if one.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [one for one in trained if one.ndim <= 1], "weight_decay": 0.0},
        ]
        key = {**config.resume_key(), "frames": cache.content_sha256}
        state, resumed = resume_weights(config.output, learner, key, resume=config.resume, processes=processes)
        run = _Run(
            config=config,
            learner=learner,
            optimizer=torch.optim.AdamW(
                [{**group, "rate_factor": 1.0, "is_head": False} for group in groups],
                lr=config.learning_rate,
                betas=_BETAS,
                fused=True,
            ),
            trained=trained,
            resume_key=key,
            resumed=resumed,
            state=state,
            processes=processes,
            scope=ComputeContext(torch.device("cpu"), config.mixed_precision),
            stop=stop or TrainingStop(),
            on_step=on_step,
            last_step=config.steps,
            policy=policy,
            pointing=pointing,
            training=questions(sources.training, None if sources.grammar is None else Wording(sources.grammar, tokenizer)),
            held_out=questions(sources.held_out) if len(sources.held_out) else None,
            numbers=number_ids(tokenizer) if config.language_weight else torch.empty(0, dtype=torch.int64),
        )
        validation = run.train()
        result = PretrainResult(
            **run.result(),
            num_frames=len(sources.training),
            num_parameters=sum(parameter.numel() for parameter in policy.parameters()),
            validation=validation,
        )
        metadata = {
            HEAD_IS_UNTRAINED: start.history is None or bool(start.history.get(HEAD_IS_UNTRAINED)),
            "pretraining": {**config.resume_key(), "frames_sha256": cache.content_sha256, "num_frames": result.num_frames,
                            "scenes": sources.scenes, "steps": state.step, "seconds": round(state.seconds, 1),
                            "last_loss": result.last_loss, "validation": validation},
            "initial": start.history,
        }  # fmt: skip
        save_checkpoint(result.checkpoint, policy, tokenizer, metadata, overwrite=True)
    return result


@dataclass(eq=False, kw_only=True)
class _Run(TrainingRun):
    """Steps of frames: texts about them, and queries that point at what they show."""

    config: PretrainConfig
    policy: RoboFlamingo
    pointing: Pointing
    training: SceneQuestions
    held_out: SceneQuestions | None
    numbers: torch.Tensor

    def train_steps(self) -> None:
        sampler = WindowSampler(len(self.training), self.config.batch_size, self.config.seed, self.state.sampler)
        with scene_loader(self.training, sampler, step=self.state.step) as loader:
            while not self.is_over():
                batch, self.state.sampler = loader.next()
                self.step(self.scope, [partial(self.loss, batch)], len(batch.places_m))

    def loss(self, batch: SceneBatch) -> torch.Tensor:
        score, pointed = self.score(batch)
        loss = self.config.pointing_weight * pointed.loss
        if score is not None:
            loss = loss + self.config.language_weight * score.loss
        self.keep("loss", loss)
        if score is not None:
            self.keep("language_loss", score.loss)
            self.keep("right", score.num_right / max(score.num_tokens, 1))
            self.keep("location_mm", _location_mm(score.distances))
        self.keep("pointing_loss", pointed.loss)
        return loss

    def score(self, batch: SceneBatch) -> tuple[SceneScore | None, PointingScore]:
        """Say the texts of a batch, where they count, and point at what its frames show."""
        features = encode_images(self.policy, batch, self.config.light if self.policy.training else 0.0)
        said = scene_score(self.policy, batch, features, self.numbers) if self.config.language_weight else None
        return said, self.pointing(features, batch)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Return loss, share of right words, and errors of numbers and of pointing, in mm, over the held-out frames."""
        if self.held_out is None:
            return {}
        self.policy.eval()
        rng = np.random.default_rng(_VALIDATION_SEED)
        chosen = evenly_spaced(len(self.held_out), self.config.validation_frames)
        loss, num_tokens, num_right, pointing_loss = 0.0, 0, 0, 0.0
        distances, blocks_m, reach_m, turns_rad = [], [], [], []
        for first in range(0, len(chosen), self.config.batch_size):
            batch = self.held_out.batch(chosen[first : first + self.config.batch_size], rng)
            score, pointed = self.scope.run(partial(self.score, batch))
            if score is not None:
                loss += float(score.loss) * score.num_tokens
                num_tokens += score.num_tokens
                num_right += score.num_right
                distances.append(score.distances)
            pointing_loss += float(pointed.loss) * len(batch.places_m)
            blocks_m.append(pointed.blocks_m.flatten())
            reach_m.append(pointed.reach_m)
            turns_rad.append(pointed.turns_rad)
        said = {} if not distances else {
            "validation_language_loss": loss / num_tokens,
            "validation_right": num_right / num_tokens,
            "validation_location_mm": _location_mm(torch.cat(distances)),
            "validation_median_mm": float(torch.cat(distances).median()) * STEP_M * _MM_PER_M,
        }  # fmt: skip
        return {
            **said,
            "validation_pointing_loss": pointing_loss / len(chosen),
            "validation_block_median_mm": _MM_PER_M * _median(torch.cat(blocks_m)),
            "validation_reach_median_mm": _MM_PER_M * _median(torch.cat(reach_m)),
            "validation_turn_median_rad": _median(torch.cat(turns_rad)),
        }


def _location_mm(distances: torch.Tensor) -> float:
    return float(distances.mean()) * STEP_M * _MM_PER_M if len(distances) else 0.0


def _median(errors: torch.Tensor) -> float:
    return float(errors.median()) if len(errors) else 0.0
