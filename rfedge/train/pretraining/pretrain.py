"""Vision-language pre-training on frames of demonstrations: the backbone learns to say where things are.

RoboFlamingo finds that a policy whose resampler and cross-attention were pre-trained on pictures and words does far better
than one that learns to see from actions alone (its section 5.3). Presets that start from nothing get theirs here: the
language model's own loss on captions and questions of `rfedge.data.scene.questions`, and the loss of queries that point at
things (`rfedge.train.pretraining.pointing`). The head is not touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from rfedge.data.calvin import CalvinDataset
from rfedge.data.frame_cache import FrameCache
from rfedge.data.scene.questions import QUESTION_WORDS, STEP_M, SceneFacts
from rfedge.data.windows import WindowIndex, WindowSampler, split_segments
from rfedge.io.atomic import claimed
from rfedge.io.disk import check_room
from rfedge.jobs.progress import StageProgress
from rfedge.model import RoboFlamingo, build_policy, load_checkpoint, save_checkpoint
from rfedge.model.checkpoint import HEAD_IS_UNTRAINED
from rfedge.train.batches.vocabulary import learn_tokenizer
from rfedge.train.batches.wording import Grammar, Wording, check_grammar
from rfedge.train.distributed import Processes
from rfedge.train.metrics import open_metrics
from rfedge.train.pretraining.config import PretrainConfig
from rfedge.train.pretraining.pointing import Pointing, PointingScore
from rfedge.train.pretraining.scene_batches import (
    SceneBatch,
    SceneLoader,
    SceneQuestions,
    SceneScore,
    encode_images,
    number_ids,
    scene_score,
)
from rfedge.train.result import TrainingStep
from rfedge.train.run import TrainingRun
from rfedge.train.schedule import learning_rate_factor
from rfedge.train.settings import torch_settings
from rfedge.train.sources import WORD_WEIGHTS
from rfedge.train.state import (
    CHECKPOINT_FOLDER,
    Progress,
    load_moments,
    load_weights,
    newest_state,
    read_document,
)
from rfedge.train.stopping import TrainingStop

_VALIDATION_SEED: Final = 12345
_BETAS: Final = (0.9, 0.98)
_MM_PER_M: Final = 1000.0


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """What a run came to.

    Attributes:
        steps, seconds: over all parts of the run.
        first_loss, last_loss: mean training loss, weighted sum, of the first and of the last `num_averaged` steps.
        validation: metrics of the held-out frames at the end; empty without any.
    """

    checkpoint: Path
    steps: int
    seconds: float
    num_frames: int
    num_parameters: int
    first_loss: float
    last_loss: float
    num_averaged: int
    validation: dict[str, float]
    stopped: bool = False


def pretrain_policy(
    config: PretrainConfig,
    *,
    grammar: Grammar | None = None,
    progress: StageProgress | None = None,
    on_step: Callable[[TrainingStep], None] | None = None,
    stop: TrainingStop | None = None,
) -> PretrainResult:
    """Train until the first of steps and minutes is reached, and write `output/checkpoint`; goes on where it was stopped.

    With `stop` it ends after the step under way, with state and checkpoint written.

    Raises:
        DatasetError: the demonstrations are damaged, or do not say what their frames show.
        ConfigError: a state of a run with other options is in `output`, or `grammar` is missing or lacks a task.
        ArtifactError: that state is damaged, another run writes to `output`, or the disk has no room.
    """
    with claimed(config.output):
        return _pretrain(config, grammar, progress, on_step, stop or TrainingStop())


def _pretrain(
    config: PretrainConfig,
    grammar: Grammar | None,
    progress: StageProgress | None,
    on_step: Callable[[TrainingStep], None] | None,
    stop: TrainingStop,
) -> PretrainResult:
    dataset = CalvinDataset.open(config.data)
    grammar = check_grammar(config.instructions, grammar, dataset.segments)
    on_frame = None if progress is None else lambda done, total: progress("frame cache", done, total)
    cache = FrameCache.open(dataset, folder=config.cache, on_frame=on_frame)
    parts = split_segments(dataset, config.validation_fraction, config.seed)
    training, held_out = (WindowIndex(dataset.segments, chosen, window=1) for chosen in parts)
    with torch_settings(config, torch.device("cpu")):
        if config.initial_checkpoint is None:
            policy, history = build_policy(config.policy, config.seed), None
            tokenizer = learn_tokenizer(dataset.instructions, config.policy.decoder, grammar, QUESTION_WORDS * 2)
        else:
            initial = load_checkpoint(config.initial_checkpoint)
            policy, tokenizer, history = initial.policy, initial.tokenizer, initial.metadata
            if config.vocab_size is not None:
                policy = build_policy(config.policy, config.seed)
                kept = {name: tensor for name, tensor in initial.policy.state_dict().items() if name not in WORD_WEIGHTS}
                policy.load_state_dict(kept, strict=False)
                tokenizer = learn_tokenizer(dataset.instructions, config.policy.decoder, grammar, QUESTION_WORDS * 2)

        def questions(index: WindowIndex, wording: Wording | None = None) -> SceneQuestions:
            facts, has_texts = SceneFacts.of(dataset, cache, index), config.language_weight > 0
            return SceneQuestions(index, cache, facts, tokenizer, wording=wording, has_texts=has_texts)

        pointing = Pointing.of(policy, config.seed)
        learner = nn.ModuleDict({"policy": policy, "pointing": pointing})
        trained = [(name, one) for name, one in learner.named_parameters() if not name.startswith("policy.head.")]
        optimizer = torch.optim.AdamW(
            [
                {"params": [one for _, one in trained if one.ndim > 1], "weight_decay": config.weight_decay},
                {"params": [one for _, one in trained if one.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=_BETAS,
            fused=True,
        )
        key = {**config.resume_key(), "frames": cache.content_sha256}
        newest = newest_state(config.output, resume=config.resume, processes=Processes())
        state = Progress() if newest is None else read_document(newest, key)
        if newest is not None:
            load_weights(newest, learner)
            load_moments(newest, learner, optimizer, trained)
        weights_bytes = sum(tensor.numel() * tensor.element_size() for tensor in policy.state_dict().values())
        num_states = 1 if state.step else config.keep_states + 1
        check_room(config.output, weights_bytes * (1 + 3 * num_states), what="checkpoint and training states")
        with open_metrics(config.output, resumed_step=state.step) as write:
            run = _Run(
                config=config,
                learner=learner,
                optimizer=optimizer,
                trained=trained,
                resume_key=key,
                state=state,
                write=write,
                processes=Processes(),
                device=torch.device("cpu"),
                stop=stop,
                last_step=config.steps,
                policy=policy,
                pointing=pointing,
                training=questions(training, None if grammar is None else Wording(grammar, tokenizer)),
                held_out=questions(held_out) if parts[1] else None,
                numbers=number_ids(tokenizer) if config.language_weight else torch.empty(0, dtype=torch.int64),
            )
            validation = run.train(on_step)
        first_loss, last_loss = state.mean_losses()
        result = PretrainResult(
            checkpoint=config.output / CHECKPOINT_FOLDER,
            steps=state.step,
            seconds=state.seconds,
            num_frames=len(training),
            num_parameters=sum(parameter.numel() for parameter in policy.parameters()),
            first_loss=first_loss,
            last_loss=last_loss,
            num_averaged=state.num_averaged,
            validation=validation,
            stopped=stop.reason is not None,
        )
        metadata = {
            HEAD_IS_UNTRAINED: history is None or bool(history.get(HEAD_IS_UNTRAINED)),
            "pretraining": {**config.resume_key(), "frames_sha256": cache.content_sha256, "num_frames": len(training),
                            "scenes": sorted({frames.scene for frames in dataset.scenes}), "steps": state.step,
                            "seconds": round(state.seconds, 1), "last_loss": result.last_loss, "validation": validation},
            "initial": history,
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

    def train_steps(self, on_step: Callable[[TrainingStep], None] | None) -> None:
        sampler = WindowSampler(len(self.training), self.config.batch_size, self.config.seed, self.state.sampler)
        with SceneLoader(self.training, sampler, step=self.state.step) as loader:
            while not self.is_over():
                batch, self.state.sampler = loader.next()
                self.step(batch, on_step)

    def step(self, batch: SceneBatch, on_step: Callable[[TrainingStep], None] | None) -> None:
        """One optimizer step and its metrics."""
        config, before = self.config, time.perf_counter()
        rate = config.learning_rate * learning_rate_factor(
            "cosine", step=self.state.step, warmup_steps=config.warmup_steps, progress=self.share()
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.policy.train()
        score, pointed = self.score(batch)
        loss = config.pointing_weight * pointed.loss
        if score is not None:
            loss = loss + config.language_weight * score.loss
        self.optimizer.zero_grad(set_to_none=True)
        self.descent.backward(loss)
        said = {} if score is None else {
            "language_loss": float(score.loss.detach()),
            "right": score.num_right / max(score.num_tokens, 1),
            "location_mm": _location_mm(score.distances),
        }  # fmt: skip
        values = {"loss": float(loss.detach()), **said, "pointing_loss": float(pointed.loss.detach())}
        self.end_step(values, rate, len(batch.places_m), before, on_step)

    def score(self, batch: SceneBatch) -> tuple[SceneScore | None, PointingScore]:
        """Say the texts of a batch, where they count, and point at what its frames show."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.mixed_precision == "bf16"):
            sight = encode_images(self.policy, batch, self.config.light if self.policy.training else 0.0)
            said = scene_score(self.policy, batch, sight, self.numbers) if self.config.language_weight else None
            return said, self.pointing(sight, batch)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Return loss, share of right words, and errors of numbers and of pointing, in mm, over the held-out frames."""
        if self.held_out is None:
            return {}
        self.policy.eval()
        rng = np.random.default_rng(_VALIDATION_SEED)
        chosen = np.linspace(0, len(self.held_out) - 1, min(self.config.validation_frames, len(self.held_out))).round()
        loss, num_tokens, num_right, pointing_loss = 0.0, 0, 0, 0.0
        distances, blocks_m, reach_m, turns_rad = [], [], [], []
        for first in range(0, len(chosen), self.config.batch_size):
            batch = self.held_out.batch([int(number) for number in chosen[first : first + self.config.batch_size]], rng)
            score, pointed = self.score(batch)
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
