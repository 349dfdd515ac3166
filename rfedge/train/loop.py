"""The training loop: data, policy and optimizer from a TrainConfig, steps until the end, one checkpoint."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Final

import torch
from torch.nn.utils import clip_grad_norm_

from rfedge.data.image_text import ImageTextData, open_image_text
from rfedge.data.windows import SamplerState, WindowSampler
from rfedge.errors import BackendUnavailableError, ConfigError, explain
from rfedge.model import RoboFlamingo, save_checkpoint
from rfedge.train.batches import BatchLoader, TensorBatch, window_forward
from rfedge.train.config import TrainConfig
from rfedge.train.features import FeatureBatch, FeatureTable
from rfedge.train.image_text import CoTraining
from rfedge.train.losses import batch_loss
from rfedge.train.metrics import MetricsWriter, open_metrics
from rfedge.train.result import NUM_AVERAGED_STEPS, StepReport, TrainResult, checkpoint_metadata, train_result
from rfedge.train.schedule import learning_rate_factor
from rfedge.train.sources import TrainingData, open_training_data, standardise_features, start_policy
from rfedge.train.state import Progress, latest_state, load_state, read_document, remove_states, save_state
from rfedge.train.trainable import draw_vl_layers, freeze, optimizer_groups
from rfedge.train.validation import measure_windows

__all__ = ["train_policy"]

_CHECKPOINT_FOLDER: Final = "checkpoint"
_STATE_FOLDER: Final = "state"


def train_policy(
    config: TrainConfig,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> TrainResult:
    """Train until the first of steps, epochs and minutes is reached, and write `output/checkpoint`.

    With `resume` a run that was stopped goes on at its newest state; on one machine and without `minutes` the result is
    the same, bit for bit, as that of a run that was never stopped.

    Args:
        config: the run.
        progress: called as (stage, done, total) while pairs are checked, frame cache and feature table are built.
        on_step: called after every step.

    Raises:
        DatasetError: the demonstrations or the image-text pairs are missing or damaged, or none are left to train on.
        ConfigError: a state of a run with other options is in `output`.
        ArtifactError: that state or the initial checkpoint is damaged.
        BackendUnavailableError: the device is not on this machine.
    """
    device = _device(config.device)
    pairs = _open_pairs(config, progress)  # first, so that a damaged line is told before anything is built
    with _torch_settings(config, device):
        start = start_policy(config)
        policy = start.policy
        if not config.vl_pretraining:  # in vain where a run goes on: its state holds what became of them
            draw_vl_layers(policy, config.seed)
        sources = open_training_data(config, start.tokenizer, progress)
        policy = policy.to(device)
        trained = freeze(policy, config.trainable)
        optimizer = torch.optim.AdamW(
            optimizer_groups(trained, weight_decay=config.weight_decay, head_rate=config.head_rate), lr=config.learning_rate
        )
        decisive = {
            **config.decisive(),
            "frames": sources.cache.content_sha256,
            "image-text files": None if pairs is None else pairs.content_sha256,
        }
        state = _resume(config, policy, optimizer, decisive)
        if state.step == 0 and start.head_is_new:
            standardise_features(policy, sources, config, device)
        co_training = None if pairs is None else CoTraining(pairs, sources.tokenizer, config, device, state.image_text)
        with open_metrics(config.output, resumed_step=state.step) as write:
            run = _Run(config, sources, policy, optimizer, trained, decisive, state, write, device, progress, co_training)
            validation = run.train(on_step)
        result = train_result(config, sources, state, validation, start.drawn, config.output / _CHECKPOINT_FOLDER)
        save_checkpoint(
            result.checkpoint,
            policy.cpu(),
            sources.tokenizer,
            checkpoint_metadata(config, sources, pairs, result),
            overwrite=True,
        )
    return result


class _Run:
    """The steps of one process, from `state` to the end."""

    def __init__(
        self,
        config: TrainConfig,
        sources: TrainingData,
        policy: RoboFlamingo,
        optimizer: torch.optim.Optimizer,
        trained: list[tuple[str, torch.nn.Parameter]],
        decisive: dict[str, Any],
        state: Progress,
        write: MetricsWriter,
        device: torch.device,
        progress: Callable[[str, int, int], None] | None,
        co_training: CoTraining | None,
    ) -> None:
        self.config = config
        self.sources = sources
        self.policy = policy
        self.optimizer = optimizer
        self.parameters = [parameter for _, parameter in trained]
        self.decisive = decisive
        self.state = state
        self.write = write
        self.device = device
        self.started = time.perf_counter() - state.seconds
        ends = [config.steps] if config.steps is not None else []
        if config.epochs is not None:  # passes of the whole policy
            ends.append(config.head_first_steps + math.ceil(config.epochs * len(sources.training) / config.batch_size))
        self.last_step = min(ends) if ends else None
        self.saved = state.step
        self.progress = progress
        self.co_training = co_training

    def share(self) -> float:
        """Part of the run that is done: of its steps or of its time, whichever is further."""
        shares = [0.0]
        if self.last_step is not None:
            shares.append(self.state.step / self.last_step)
        if self.config.minutes is not None:
            shares.append((time.perf_counter() - self.started) / (60.0 * self.config.minutes))
        return max(shares)

    def is_over(self) -> bool:
        """Whether the run is done; on a busy machine its minutes may pass before the first step, which is taken anyway."""
        return self.state.step > 0 and self.share() >= 1.0

    def train(self, on_step: Callable[[StepReport], None] | None) -> dict[str, float]:
        """Run the steps that are left; return the last validation."""
        if self.state.step < self.config.head_first_steps and not self.is_over():
            self.train_head(on_step)
        if not self.is_over():
            self.train_all(on_step)
        validation = self.validate()
        self.state.seconds = time.perf_counter() - self.started
        if self.saved != self.state.step:
            self.save()
        return validation

    def train_head(self, on_step: Callable[[StepReport], None] | None) -> None:
        """The first steps: only the head learns, on features computed once."""
        config, state, sources = self.config, self.state, self.sources
        sampler = WindowSampler(len(sources.training), config.head_first_batch_size, config.seed, state.sampler)
        report = self.progress
        table = FeatureTable.build(
            self.policy,
            sources.training,
            sources.cache,
            sources.table,
            self.device,
            on_frame=None if report is None else lambda done, total: report("features", done, total),
        )
        while state.step < config.head_first_steps and not self.is_over():
            batch = table.batch(sampler.next_batch())
            is_last = state.step + 1 == config.head_first_steps
            state.sampler = SamplerState() if is_last else sampler.state  # the steps of the whole policy start afresh
            self.step(batch, partial(self.policy.head.unroll, batch.features), on_step)

    def train_all(self, on_step: Callable[[StepReport], None] | None) -> None:
        """The steps in which everything that is not frozen learns."""
        config, state, sources = self.config, self.state, self.sources
        sampler = WindowSampler(len(sources.training), config.batch_size, config.seed, state.sampler)
        with (
            BatchLoader(
                sources.training, sources.cache, sources.table, sampler, shift=config.augmentation, step=state.step
            ) as loader,
            self.co_training or nullcontext() as co_training,
        ):
            while not self.is_over():
                loaded, state.sampler = loader.next()
                batch = loaded.to(self.device)
                self.step(batch, partial(window_forward, self.policy, batch), on_step, co_training)

    def step(
        self,
        batch: TensorBatch | FeatureBatch,
        forward: Callable[[], tuple[torch.Tensor, torch.Tensor]],
        on_step: Callable[[StepReport], None] | None,
        co_training: CoTraining | None = None,
    ) -> None:
        """One optimizer step, its metrics, and whatever is due after it.

        `loss` in the metrics is the robot's alone, with and without image-text pairs; the norm is of the sum's gradient.
        """
        config, state = self.config, self.state
        before = time.perf_counter()
        learning_rate = self.set_learning_rates()
        self.policy.train()
        self.optimizer.zero_grad(set_to_none=True)
        pose, gripper_logit = forward()
        parts = batch_loss(config, batch, pose, gripper_logit)
        parts.total.backward()
        pair_losses: dict[str, float] = {}
        if co_training is not None:
            pair_losses, state.image_text = co_training.backward(self.policy)
        norm = clip_grad_norm_(self.parameters, config.gradient_clip)
        self.optimizer.step()
        loss = float(parts.total.detach())
        state.step += 1
        now = time.perf_counter()
        state.seconds = now - self.started
        if len(state.first_losses) < NUM_AVERAGED_STEPS:
            state.first_losses.append(loss)
        state.last_losses = [*state.last_losses, loss][-NUM_AVERAGED_STEPS:]
        self.write(
            state.step,
            {
                "loss": loss,
                "pose_loss": float(parts.pose.detach()),
                "gripper_loss": float(parts.gripper.detach()),
                "gripper_accuracy": float(parts.gripper_accuracy),
                **pair_losses,
                "learning_rate": learning_rate,
                "gradient_norm": float(norm),
                "frames_per_second": batch.num_frames / (now - before),
            },
        )
        share = self.share()
        if on_step is not None:
            on_step(StepReport(state.step, min(share, 1.0), loss, learning_rate, state.seconds))
        if share < 1.0 and _is_due(config.validate_every, state.step):
            self.validate()
        if _is_due(config.save_every, state.step):
            self.save()

    def set_learning_rates(self) -> float:
        """Set every group's rate for the step to come; return the backbone's (its warm-up starts when it joins)."""
        config, step = self.config, self.state.step
        factor = learning_rate_factor(config.schedule, step=step, warmup_steps=config.warmup_steps, progress=self.share())
        joining = 1.0
        if config.head_first_steps and config.warmup_steps:
            joining = min(1.0, max(0, step + 1 - config.head_first_steps) / config.warmup_steps)
        for group in self.optimizer.param_groups:
            part = factor if group["is_head"] else factor * joining
            group["lr"] = config.learning_rate * part * group["rate_factor"]
        return config.learning_rate * factor * joining

    def validate(self) -> dict[str, float]:
        """Measure what was held out; an empty dict when nothing was."""
        self.policy.eval()
        values = measure_windows(self.policy, self.sources, self.config, self.device)
        if self.co_training is not None:
            values |= self.co_training.measure(self.policy)
        if values:
            self.write(self.state.step, values)
        return values

    def save(self) -> None:
        save_state(
            self.config.output / _STATE_FOLDER,
            self.policy,
            self.optimizer,
            self.state,
            self.decisive,
            keep=self.config.keep_states,
        )
        self.saved = self.state.step


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            explain("device", got=repr(name), expected="cpu, cuda or cuda:N", remedy="Choose one of these.")
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailableError(
            explain("device", got=repr(name), expected="a CUDA GPU that PyTorch can use", remedy="Pass --device cpu.")
        )
    return device


@contextmanager
def _torch_settings(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Seed PyTorch and set its threads for the run alone: the caller's settings come back at the end."""
    num_threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        try:
            yield
        finally:
            torch.set_num_threads(num_threads)


def _open_pairs(config: TrainConfig, progress: Callable[[str, int, int], None] | None) -> ImageTextData | None:
    if not config.image_text:
        return None
    on_byte = None if progress is None else lambda done, total: progress("image-text files", done, total)
    return open_image_text(
        config.image_text, validation_fraction=config.validation_fraction, seed=config.seed, on_byte=on_byte
    )


def _resume(
    config: TrainConfig, policy: RoboFlamingo, optimizer: torch.optim.Optimizer, decisive: dict[str, Any]
) -> Progress:
    folder = config.output / _STATE_FOLDER
    if not config.resume:
        remove_states(folder)
        shutil.rmtree(config.output / "tensorboard", ignore_errors=True)
    path = latest_state(folder)
    if path is None:
        return Progress()
    progress = read_document(path, decisive)
    load_state(path, policy, optimizer)
    return progress


def _is_due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
