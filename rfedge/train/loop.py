"""The training loop: data, policy and optimizer from a TrainConfig, steps until the end, one checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from rfedge.data.image_text import ImageTextData, open_image_text
from rfedge.data.windows import SamplerState, WindowSampler
from rfedge.jobs.progress import StageProgress
from rfedge.model import RoboFlamingo
from rfedge.model.checkpoint import write_checkpoint
from rfedge.model.weight_shards import TensorSpec
from rfedge.train.batches.features import FeatureBatch, FeatureTable
from rfedge.train.batches.image_text import CoTraining
from rfedge.train.batches.loader import BatchLoader, SplitBatch, TensorBatch, batch_tensors, window_forward
from rfedge.train.batches.wording import Grammar
from rfedge.train.compute_context import ComputeContext, full_weights, reach_all, shard
from rfedge.train.config import TrainConfig
from rfedge.train.distributed import Processes, join
from rfedge.train.losses import StepLosses
from rfedge.train.metrics import open_metrics
from rfedge.train.optimizer import make_optimizer
from rfedge.train.output import check_training_room, claimed_by_first, raise_together
from rfedge.train.pretraining.scene_training import POINTING, SceneTraining
from rfedge.train.result import TrainingStep, TrainResult, checkpoint_metadata, train_result
from rfedge.train.run import TrainingRun
from rfedge.train.schedule import learning_rate_factor
from rfedge.train.settings import check_batches, open_device, torch_settings
from rfedge.train.sources import (
    TrainingData,
    open_training_data,
    precompute_vision_tokens,
    standardise_features,
    start_policy,
)
from rfedge.train.state import (
    CHECKPOINT_FOLDER,
    Progress,
    load_moments,
    load_weights,
    newest_state,
    read_document,
)
from rfedge.train.stopping import TrainingStop
from rfedge.train.task_probe import TASK_PROBE, attach_task_probe
from rfedge.train.trainable import freeze, optimizer_groups, reinit_vl_layers
from rfedge.train.validation import measure_windows

B = TypeVar("B", TensorBatch, FeatureBatch)


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

    Args:
        grammar: what its instructions are sampled from, with `instructions` "grammar" alone.
        progress: called as (stage, done, total) while pairs are checked, frame cache and feature table are built.
        stop: ends the run after the step under way, in every process of it, with state and checkpoint written.

    Raises:
        DatasetError: the demonstrations or the image-text pairs are missing or damaged, or none are left to train on.
        ConfigError: a state of a run with other options is in `output`, or a batch has fewer windows than there are
            processes and passes.
        ArtifactError: that state or the initial checkpoint is damaged, another run writes to `output`, or the disk has no
            room for what the run will write.
        BackendUnavailableError: the device is not on this machine, or another process of the run is gone.
    """
    with join(config.device) as processes, processes.translate_peer_failure(), claimed_by_first(config.output, processes):
        return _train(config, processes, grammar, progress, on_step, stop or TrainingStop())


def _train(
    config: TrainConfig,
    processes: Processes,
    grammar: Grammar | None,
    progress: StageProgress | None,
    on_step: Callable[[TrainingStep], None] | None,
    stop: TrainingStop,
) -> TrainResult:
    device = open_device(config.device)
    check_batches(config, processes)
    pairs = _open_pairs(config, progress)  # first, so that a damaged line ends the run before anything is built
    with torch_settings(config, device):
        start = start_policy(config)
        policy = start.policy
        if not config.vl_pretraining:  # in vain where a run goes on: its state holds what became of them
            reinit_vl_layers(policy, config.seed)
        sources = open_training_data(config, start.tokenizer, progress, processes, grammar)
        key = {
            **config.resume_key(),
            "frames": sources.cache.content_sha256,
            "image-text files": None if pairs is None else pairs.content_sha256,
        }
        if config.pointing_weight:
            SceneTraining.attach(policy, config.seed)
        if config.task_weight:
            attach_task_probe(policy, len(sources.table.tasks), config.seed)
        resumed = newest_state(config.output, resume=config.resume, processes=processes)
        state = Progress() if resumed is None else read_document(resumed, key)
        if resumed is not None:
            load_weights(resumed, policy)
        if config.vision_tokens:
            sources = precompute_vision_tokens(config, sources, policy.to(device), device, processes, progress)
        is_sharded = processes.world_size > 1 and config.parallel == "fsdp"
        if state.step == 0 and start.head_is_new:
            standardise_features(policy.to(device), sources, config, device)
            processes.copy_from_first(policy.head.parameters())
        sharded = shard(policy, device, processes) if is_sharded else None
        policy = policy.to(device)
        trained = freeze(policy, config.trainable)
        groups = optimizer_groups(trained, weight_decay=config.weight_decay, head_rate=config.head_rate)
        optimizer = make_optimizer(config, groups)
        raise_together(processes, partial(check_training_room, config, policy, trained, goes_on=resumed is not None))
        if resumed is not None:
            load_moments(resumed, policy, optimizer, trained)
        co_training = (
            None if pairs is None else CoTraining(pairs, sources.tokenizer, config, device, state.image_text, processes)
        )
        scope = ComputeContext(device, config.mixed_precision, sharded)
        with (
            open_metrics(config.output, resumed_step=state.step)
            if processes.is_first
            else nullcontext(_write_nothing) as write
        ):
            run = _Run(
                config=config,
                learner=policy,
                optimizer=optimizer,
                trained=trained,
                resume_key=key,
                state=state,
                write=write,
                processes=processes,
                device=device,
                stop=stop,
                last_step=_last_step(config, len(sources.training)),
                sources=sources,
                policy=policy,
                scope=scope,
                progress=progress,
                co_training=co_training,
            )
            validation = run.train(on_step)
        result = train_result(config, sources, state, validation, start.initialised, config.output / CHECKPOINT_FOLDER)
        result = replace(result, stopped=run.is_stopped)
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
    sources: TrainingData
    policy: RoboFlamingo
    scope: ComputeContext
    progress: StageProgress | None
    co_training: CoTraining | None

    def train_steps(self, on_step: Callable[[TrainingStep], None] | None) -> None:
        if self.state.step < self.config.head_first_steps and not self.is_over():
            self.train_head(on_step)
        if not self.is_over():
            self.train_all(on_step)

    def measure(self) -> dict[str, float]:
        self.policy.eval()
        values = measure_windows(self.policy, self.sources, self.config, self.scope, self.processes)
        if self.co_training is not None:
            values |= self.co_training.measure(self.policy, self.scope)
        return values

    def shared(self, module: torch.nn.Module) -> ComputeContext:
        """Where `module` learns: processes that all hold the whole policy give each other the gradients of that alone."""
        if self.processes.world_size == 1 or self.config.parallel == "fsdp":
            return self.scope
        all_learn = module is self.policy.head or (self.co_training is None and self.all_learn())
        return self.scope.share_gradients_of(module, all_learn=all_learn)

    def train_head(self, on_step: Callable[[TrainingStep], None] | None) -> None:
        """The first steps: only the head learns, on features computed once."""
        config, state, sources, head = self.config, self.state, self.sources, self.policy.head
        sampler = WindowSampler(len(sources.training), config.head_first_batch_size, config.seed, state.sampler)
        parts = self.processes.parts(config.head_first_batch_size)
        report = self.progress
        table = FeatureTable.build(
            self.policy,
            sources.training,
            sources.cache,
            sources.table,
            self.scope.device,
            on_frame=None if report is None else lambda done, total: report("features", done, total),
            scope=self.scope,
            processes=self.processes,
        )
        scope = self.shared(head)
        while state.step < config.head_first_steps and not self.is_over():
            batch = table.split(sampler.next_batch(), parts)
            is_last = state.step + 1 == config.head_first_steps
            state.sampler = SamplerState() if is_last else sampler.state  # the steps of the whole policy start afresh
            self.step(scope, batch, lambda part: head.unroll(part.features), on_step)

    def all_learn(self) -> bool:
        """Whether each parameter that is not frozen gets a gradient from a window; a last block may serve pairs alone."""
        sources = self.sources
        self.policy.eval()
        batch = batch_tensors(sources.training, sources.cache, sources.table, [0]).to(self.scope.device)
        return reach_all(self.scope.run(partial(window_forward, self.policy, batch)), self.descent.parameters)

    def train_all(self, on_step: Callable[[TrainingStep], None] | None) -> None:
        """The steps in which everything that is not frozen learns."""
        config, state, sources = self.config, self.state, self.sources
        sampler = WindowSampler(len(sources.training), config.batch_size, config.seed, state.sampler)
        scope = self.shared(self.policy)
        with (
            BatchLoader(
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
                SceneTraining(config, sources, state.scene, state.step, self.processes)
                if config.pointing_weight
                else nullcontext()
            ) as scene,
        ):
            while not self.is_over():
                loaded, state.sampler = loader.next()
                batch = SplitBatch([part.to(scope.device) for part in loaded.parts], loaded.num_actions)
                self.step(scope, batch, partial(window_forward, self.policy), on_step, co_training, scene)

    def step(
        self,
        scope: ComputeContext,
        batch: SplitBatch[B],
        forward: Callable[[B], tuple[torch.Tensor, ...]],
        on_step: Callable[[TrainingStep], None] | None,
        co_training: CoTraining | None = None,
        scene: SceneTraining | None = None,
    ) -> None:
        """One optimizer step, its metrics, and whatever is due after it.

        `loss` in the metrics is the robot's alone, with and without image-text pairs; the norm is of the sum's gradient.
        """
        config: TrainConfig = self.config
        state: Progress = self.state
        before = time.perf_counter()
        learning_rate = self.set_learning_rates()
        self.policy.train()
        self.optimizer.zero_grad(set_to_none=True)
        self.processes.seed_dropout(config.seed, state.step)
        losses = StepLosses()
        passes = [partial(losses.of_windows, config, part, batch.num_actions, forward) for part in batch.parts]
        if co_training is not None:
            pair_passes, state.image_text = co_training.next(self.policy)
            passes += [partial(losses.of_pairs, pairs) for pairs in pair_passes if pairs.weight > 0.0]
        if scene is not None:
            passes.append(partial(self.point, scene, losses))
        for number, compute in enumerate(passes, 1):  # one after the other, so that only one graph is held
            with scope.gradients(shared=number == len(passes)):
                # Every process has its part of one mean, and the mean of these parts is taken where they meet.
                self.descent.backward(scope.run(compute) * self.processes.world_size)
        if co_training is not None:
            with torch.no_grad():  # not a gradient of zeros: what has none does not decay
                for pairs in pair_passes:
                    if pairs.weight == 0.0:
                        scope.run(partial(losses.of_pairs, pairs))
        self.end_step(losses.values(), learning_rate, batch.num_frames, before, on_step)

    def point(self, scene: SceneTraining, losses: StepLosses) -> torch.Tensor:
        """The pass of the frames that are pointed at."""
        loss, self.state.scene = scene.loss(self.policy)
        return losses.keep("pointing_loss", loss)

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


def _last_step(config: TrainConfig, num_windows: int) -> int | None:
    ends = [config.steps] if config.steps is not None else []
    if config.epochs is not None:  # passes of the whole policy
        ends.append(config.head_first_steps + math.ceil(config.epochs * num_windows / config.batch_size))
    return min(ends) if ends else None


def _open_pairs(config: TrainConfig, progress: StageProgress | None) -> ImageTextData | None:
    if not config.image_text:
        return None
    on_byte = None if progress is None else lambda done, total: progress("image-text files", done, total)
    return open_image_text(
        config.image_text, validation_fraction=config.validation_fraction, seed=config.seed, on_byte=on_byte
    )


def _write_nothing(step: int, values: dict[str, float]) -> None:
    """Stand in for the metrics of a process that is not the first."""
