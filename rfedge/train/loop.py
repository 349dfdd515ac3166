"""Imitation: data, policy and optimizer from a TrainConfig, steps until the end, one checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import torch

from rfedge.data.image_text import open_image_text
from rfedge.data.statistics import evenly_spaced
from rfedge.data.windows import SamplerState, WindowSampler
from rfedge.jobs.progress import StageProgress
from rfedge.model import RoboFlamingo
from rfedge.model.checkpoint import TensorSpec, write_checkpoint
from rfedge.train.batches.features import FeatureTable
from rfedge.train.batches.image_text import CoTraining, PairPass
from rfedge.train.batches.loader import LabelledWindows, Prefetch, SplitBatch, batch_loader, batch_tensors, window_forward
from rfedge.train.batches.wording import Grammar
from rfedge.train.compute_context import (
    ComputeContext,
    check_batches,
    full_weights,
    open_device,
    reach_all,
    shard,
    torch_settings,
)
from rfedge.train.config import TrainConfig
from rfedge.train.distributed import join
from rfedge.train.losses import TASK_PROBE, LossParts, attach_task_probe, policy_loss
from rfedge.train.pretraining.pointing import POINTING, Pointing, SceneBatch, pointing_loader, pointing_loss
from rfedge.train.result import VALIDATION_FIELDS, TrainingStep, TrainResult, checkpoint_metadata
from rfedge.train.run import Pass, TrainingRun, claimed_by_first
from rfedge.train.sources import (
    TrainingData,
    open_training_data,
    precompute_vision_tokens,
    standardise_features,
    start_policy,
)
from rfedge.train.state import resume_weights
from rfedge.train.stopping import TrainingStop
from rfedge.train.trainable import freeze, make_optimizer, reinit_vl_layers

_WINDOW_METRICS: Final = ("loss", "pose_loss", "gripper_loss", "gripper_accuracy")  # in the order of `LossParts`
B = TypeVar("B", bound=LabelledWindows)


def train_policy(
    config: TrainConfig,
    *,
    grammar: Grammar | None = None,
    progress: StageProgress | None = None,
    on_step: Callable[[TrainingStep], None] | None = None,
    stop: TrainingStop | None = None,
) -> TrainResult:
    """Train until the first of steps, epochs and minutes is reached, and write `output/checkpoint`.

    With `resume` a run that was stopped goes on at its newest state; on one machine and without `minutes` the result is
    the same, bit for bit, as that of a run that was never stopped. Started by torchrun, every process calls this; the
    first one writes all files, and all return the same result.

    Raises:
        DatasetError: demonstrations or image-text pairs are missing or damaged, or none are left to train on.
        ConfigError: `output` has a state of a run with other options, or a batch is too small for the processes.
        ArtifactError: a state or checkpoint is damaged, another run writes to `output`, or the disk has no room.
        BackendUnavailableError: the device is not on this machine, or another process of the run is gone.
    """
    with (
        join(config.device) as processes,
        processes.translate_peer_failure(),
        claimed_by_first(config.output, processes),
        torch_settings(config, device := open_device(config.device)),
    ):
        check_batches(config, processes)
        pairs = None
        if config.image_text:  # first, so that a damaged line ends the run before anything is built
            on_byte = None if progress is None else partial(progress, "image-text files")
            part, seed = config.validation_fraction, config.seed
            pairs = open_image_text(config.image_text, validation_fraction=part, seed=seed, on_byte=on_byte)
        start = start_policy(config)
        policy = start.policy
        if not config.vl_pretraining:  # in vain where a run goes on: its state holds what became of them
            reinit_vl_layers(policy, config.seed)
        sources = open_training_data(config, start.tokenizer, progress, processes, grammar, share=config.data_share)
        key = {
            **config.resume_key(),
            "frames": sources.cache.content_sha256,
            "image-text files": None if pairs is None else pairs.content_sha256,
        }
        if config.pointing_weight:
            policy.add_module(POINTING, Pointing.of(policy, config.seed))
        if config.task_weight:
            attach_task_probe(policy, len(sources.table.tasks), config.seed)
        state, resumed = resume_weights(config.output, policy, key, resume=config.resume, processes=processes)
        if config.vision_tokens:
            sources = precompute_vision_tokens(config, sources, policy.to(device), device, processes, progress)
        is_sharded = processes.world_size > 1 and config.parallel == "fsdp"
        if state.step == 0 and start.head_is_new:
            standardise_features(policy.to(device), sources, config, device)
            processes.copy_from_first(policy.head.parameters())
        sharded = shard(policy, device, processes) if is_sharded else None
        policy = policy.to(device)
        trained = freeze(policy, config.trainable)
        run = _Run(
            config=config,
            learner=policy,
            optimizer=make_optimizer(config, trained),
            trained=[parameter for _, parameter in trained],
            resume_key=key,
            resumed=resumed,
            state=state,
            processes=processes,
            scope=ComputeContext(device, config.mixed_precision, sharded),
            stop=stop or TrainingStop(),
            on_step=on_step,
            last_step=_last_step(config, len(sources.training)),
            schedule=config.schedule,
            head_first_steps=config.head_first_steps,
            sources=sources,
            progress=progress,
            co_training=None
            if pairs is None
            else CoTraining(pairs, sources.tokenizer, config, device, state.image_text, processes),
        )
        validation = run.train()
        measured: dict[str, Any] = {name: validation.get(name) for name in VALIDATION_FIELDS}
        result = TrainResult(
            **run.result(),
            **measured,
            initialised=tuple(sorted({".".join(name.split(".")[:2]) for name in start.initialised})),
            epochs=max(0, state.step - config.head_first_steps) * config.batch_size / len(sources.training),
        )
        weights = full_weights(policy, processes)
        if processes.is_first:
            metadata = checkpoint_metadata(config, sources, pairs, result, processes.world_size, start.history)
            weights = {name: tensor for name, tensor in weights.items() if not name.startswith((POINTING, TASK_PROBE))}
            specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in weights.items()}
            write_checkpoint(
                result.checkpoint, config.policy, sources.tokenizer, metadata, specs, weights.__getitem__, overwrite=True
            )
        processes.wait()
    return result


@dataclass(eq=False, kw_only=True)
class _Run(TrainingRun):
    """Steps of windows, and of image-text pairs and frames that are pointed at where the run has them."""

    config: TrainConfig
    learner: RoboFlamingo
    sources: TrainingData
    progress: StageProgress | None
    co_training: CoTraining | None

    def train_steps(self) -> None:
        if self.state.step < self.config.head_first_steps and not self.is_over():
            self._train_head()
        if not self.is_over():
            self._train_all()

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Return losses of evenly spread held-out windows, and of pairs; several processes measure a part each."""
        self.learner.eval()
        config, index, values = self.config, self.sources.held_out, dict[str, float]()
        sums = dict.fromkeys((*_WINDOW_METRICS, "num_actions"), 0.0)
        chosen = evenly_spaced(len(index), config.validation_windows)
        for numbers, counts in self.processes.shares(chosen, config.batch_size):
            batch = batch_tensors(index, self.sources.cache, self.sources.table, list(numbers)).to(self.scope.device)
            losses = self._compare(batch, self.scope.run(partial(window_forward, self.learner, batch)))
            if counts:  # batches weigh by what they hold, so their size does not matter
                count = int(batch.action_mask.sum())
                sums["num_actions"] += count
                for name, value in zip(_WINDOW_METRICS, losses, strict=True):
                    sums[name] += float(value) * count
        if len(index):
            totals = self.processes.sum(sums)
            values = {f"validation_{name}": totals[name] / totals["num_actions"] for name in _WINDOW_METRICS}
        if self.co_training is not None:
            values |= self.co_training.measure(self.learner, self.scope)
        return values

    def _shared(self, module: torch.nn.Module) -> ComputeContext:
        """Where `module` learns: processes that all hold the whole policy give each other the gradients of that alone."""
        if self.processes.world_size == 1 or self.config.parallel == "fsdp":
            return self.scope
        all_learn = module is self.learner.head or (self.co_training is None and self._all_learn())
        return self.scope.share_gradients_of(module, all_learn=all_learn)

    def _all_learn(self) -> bool:
        """Whether each parameter that is not frozen gets a gradient from a window; a last block may serve pairs alone."""
        sources = self.sources
        self.learner.eval()
        batch = batch_tensors(sources.training, sources.cache, sources.table, [0]).to(self.scope.device)
        return reach_all(self.scope.run(partial(window_forward, self.learner, batch)), self.trained)

    def _train_head(self) -> None:
        """The first steps: only the head learns, on features computed once."""
        config, state, sources, head = self.config, self.state, self.sources, self.learner.head
        sampler = WindowSampler(len(sources.training), config.head_first_batch_size, config.seed, state.sampler)
        parts = self.processes.parts(config.head_first_batch_size)
        report = self.progress
        table = FeatureTable.build(
            self.learner,
            sources.training,
            sources.cache,
            sources.table,
            self.scope.device,
            on_frame=None if report is None else partial(report, "features"),
            scope=self.scope,
            processes=self.processes,
        )
        scope = self._shared(head)
        while state.step < config.head_first_steps and not self.is_over():
            batch = table.split(sampler.next_batch(), parts)
            is_last = state.step + 1 == config.head_first_steps
            state.sampler = SamplerState() if is_last else sampler.state  # the steps of the whole policy start afresh
            self.step(scope, self._passes(batch, lambda part: head.unroll(part.features)), batch.num_frames)

    def _train_all(self) -> None:
        """The steps in which everything that is not frozen learns."""
        config, state, sources, policy = self.config, self.state, self.sources, self.learner
        sampler = WindowSampler(len(sources.training), config.batch_size, config.seed, state.sampler)
        scope = self._shared(policy)
        with (
            batch_loader(
                sources.training,
                sources.cache,
                sources.table,
                sampler,
                shift=config.augmentation,
                step=state.step,
                processes=self.processes,
                accumulate=config.accumulate,
            ) as loader,
            self.co_training or nullcontext() as co_training,
            (
                pointing_loader(config, sources, state.scene, state.step, self.processes)
                if config.pointing_weight
                else nullcontext()
            ) as scene,
        ):
            while not self.is_over():
                loaded, state.sampler = loader.next()
                batch = SplitBatch([part.to(scope.device) for part in loaded.parts], loaded.num_actions)
                passes = self._passes(batch, partial(window_forward, policy))
                pairs: list[PairPass] = []
                if co_training is not None:
                    pairs, state.image_text = co_training.passes(policy)
                passes += [partial(self._of_pairs, one) for one in pairs if one.weight > 0.0]
                if scene is not None:
                    passes.append(partial(self._of_scene, scene))
                unlearned = [partial(self._of_pairs, one) for one in pairs if one.weight == 0.0]
                self.step(scope, passes, batch.num_frames, unlearned=unlearned)

    def _passes(self, batch: SplitBatch[B], forward: Callable[[B], tuple[torch.Tensor, ...]]) -> list[Pass]:
        return [partial(self._of_windows, part, batch.num_actions, forward) for part in batch.parts]

    def _of_windows(self, part: B, num_actions: int, forward: Callable[[B], tuple[torch.Tensor, ...]]) -> torch.Tensor:
        """Return the loss of some windows, as their part in the mean over all `num_actions` of the batch."""
        acted = forward(part)
        losses = self._compare(part, acted, num_actions)
        for name, value in zip(_WINDOW_METRICS, losses, strict=True):
            self.keep(name, value)
        if len(acted) < 3:
            return losses.total
        self.keep("task_loss", acted[2])
        return losses.total + self.config.task_weight * (part.action_mask.sum() / num_actions) * acted[2]

    def _compare(self, batch: LabelledWindows, acted: tuple[torch.Tensor, ...], num_actions: int | None = None) -> LossParts:
        return policy_loss(
            acted[0].float(),
            acted[1].float(),
            batch.actions,
            batch.action_mask,
            kind=self.config.loss,
            gripper_weight=self.config.gripper_weight,
            num_actions=num_actions,
        )

    def _of_pairs(self, pairs: PairPass) -> torch.Tensor:
        loss = pairs.loss()
        self.keep(pairs.name, loss)
        return pairs.weight * loss

    def _of_scene(self, scene: Prefetch[tuple[SceneBatch, SamplerState]]) -> torch.Tensor:
        batch, self.state.scene = scene.next()
        loss = self.config.pointing_weight * pointing_loss(self.learner, batch.to(self.scope.device), self.config.light)
        self.keep("pointing_loss", loss)
        return loss


def _last_step(config: TrainConfig, num_windows: int) -> int | None:
    ends = [config.steps] if config.steps is not None else []
    if config.epochs is not None:  # passes of the whole policy
        ends.append(config.head_first_steps + math.ceil(config.epochs * num_windows / config.batch_size))
    return min(ends) if ends else None
