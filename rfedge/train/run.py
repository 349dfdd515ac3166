"""The loop of every training run: optimizer steps, metrics, states, ends, and the refusal of what is not finite."""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from rfedge.errors import ArtifactError, BackendUnavailableError, GateError
from rfedge.io.atomic import atomic_file, claimed
from rfedge.io.disk import check_room
from rfedge.train.compute_context import ComputeContext, full_tensor
from rfedge.train.config import RunConfig, ScheduleKind
from rfedge.train.distributed import Processes
from rfedge.train.result import TrainingStep
from rfedge.train.state import CHECKPOINT_FOLDER, STATE_FOLDER, Progress, load_moments, save_state
from rfedge.train.stopping import TrainingStop

# Computes a loss with a gradient; what the metrics say of it goes through `TrainingRun.keep`.
Pass = Callable[[], torch.Tensor]
# A run too short for its warm-up would never reach its learning rate.
_LONGEST_WARMUP_SHARE: Final = 0.1


@dataclass(eq=False, kw_only=True)
class TrainingRun(ABC):
    """The steps of one process, from `state` to the end; a kind of run adds what a step computes and what it measures."""

    config: RunConfig
    learner: nn.Module  # all that a state stores
    optimizer: torch.optim.Optimizer  # AdamW over `trained`; each group has its `rate_factor` and says whether it `is_head`
    trained: list[nn.Parameter]
    resume_key: dict[str, Any]  # JSON values that a resumed run must repeat
    resumed: Path | None  # the state on disk that `state` and the weights were read from; None at the start of a run
    state: Progress
    processes: Processes
    scope: ComputeContext
    stop: TrainingStop
    on_step: Callable[[TrainingStep], None] | None
    last_step: int | None  # after which the run ends; None where only time ends it
    schedule: ScheduleKind = "cosine"
    head_first_steps: int = 0  # steps in which only the head learns; the others begin their own warm-up after them
    is_stopped: bool = False  # whether `stop` ended it, in every process after the same step

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.scope.device.type, enabled=self.config.mixed_precision == "fp16")
        self.losses: dict[str, list[torch.Tensor | float]] = {}
        self.write: MetricsWriter = lambda step, values: None
        self.saved = self.state.step

    @abstractmethod
    def train_steps(self) -> None:
        """Take the steps that are left."""

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """Return metrics of what was held out; an empty dict when nothing was."""

    def train(self) -> dict[str, float]:
        """Run the steps that are left; return the last measurement."""
        raise_together(self.processes, self._check_room)
        if self.resumed is not None:
            load_moments(self.resumed, self.learner, self.optimizer)
        if self.state.scaler:
            self.scaler.load_state_dict(self.state.scaler)
        self.started = time.perf_counter() - self.state.seconds
        with (
            open_metrics(self.config.output, resumed_step=self.state.step)
            if self.processes.is_first
            else nullcontext(self.write) as self.write
        ):
            self.stop.is_heard = True
            self.train_steps()
            measured = {} if self.is_stopped else self.validate()
            self.state.seconds = self.processes.sum({"seconds": self.my_seconds()})["seconds"]
            if self.saved != self.state.step:
                self.save()
        return measured

    def result(self) -> dict[str, Any]:
        first_loss, last_loss = self.state.mean_losses()
        return {
            "first_loss": first_loss,
            "last_loss": last_loss,
            "num_averaged": self.state.num_averaged,
            "checkpoint": self.config.output / CHECKPOINT_FOLDER,
            "steps": self.state.step,
            "seconds": self.state.seconds,
            "stopped": self.is_stopped,
        }

    def share(self) -> float:
        """Part of the run that was done at the end of the last step: of its steps or of its time, whichever is further."""
        of_steps = 0.0 if self.last_step is None else self.state.step / self.last_step
        minutes = self.config.minutes
        return max(of_steps, 0.0 if minutes is None else self.state.seconds / (60.0 * minutes))

    def is_over(self) -> bool:
        """Whether the run is done; on a busy machine its minutes may pass before the first step, which is taken anyway."""
        return self.is_stopped or (self.state.step > 0 and self.share() >= 1.0)

    def my_seconds(self) -> float:
        """Training time since the start, by the clock of the first process: all must end together."""
        return time.perf_counter() - self.started if self.processes.is_first else 0.0

    def keep(self, name: str, value: torch.Tensor | float) -> None:
        """Keep a number of the step's passes; the metrics say its sum over passes and processes."""
        self.losses.setdefault(name, []).append(value.detach() if isinstance(value, torch.Tensor) else value)

    def step(
        self, scope: ComputeContext, passes: Sequence[Pass], num_frames: int, *, unlearned: Iterable[Pass] = ()
    ) -> None:
        """Take one optimizer step over the sum of `passes` and do what is due after it; `unlearned` are only measured."""
        state, config = self.state, self.config
        started = time.perf_counter()
        learning_rate = self._set_learning_rates()
        self.learner.train()
        self.optimizer.zero_grad(set_to_none=True)
        self.processes.seed_dropout(config.seed, state.step)
        self.losses = {}
        for number, compute in enumerate(passes, 1):
            with scope.gradients(shared=number == len(passes)):
                # Every process has its part of one mean, and the mean of these parts is taken where they meet.
                self.scaler.scale(scope.run(compute) * self.processes.world_size).backward()
        with torch.no_grad():  # not a gradient of zeros: what has none does not decay
            for compute in unlearned:
                scope.run(compute)
        norm = self.descend()
        state.scaler = self.scaler.state_dict()
        # Numbers make a GPU wait, so they are asked for once the step has been taken.
        values = {name: sum(float(value) for value in kept) for name, kept in self.losses.items()}
        stop = float(self.stop.reason is not None)
        values = self.processes.sum({**values, "num_frames": num_frames, "seconds": self.my_seconds(), "stop": stop})
        self.is_stopped = values.pop("stop") > 0.0
        self._refuse_nonfinite(values["loss"], norm)
        frames_per_second = values.pop("num_frames") / (time.perf_counter() - started)
        state.seconds = values.pop("seconds")
        state.step += 1
        state.add_loss(values["loss"])
        values["learning_rate"] = learning_rate
        if self.scaler.is_enabled():
            values["loss_scale"] = self.scaler.get_scale()
        if math.isfinite(norm):  # JSON has no infinity, and overflows in fp16 are part of the search for a scale
            values["gradient_norm"] = norm
        self.write(state.step, {**values, "frames_per_second": frames_per_second})
        share = self.share()
        if self.on_step is not None:
            self.on_step(TrainingStep(state.step, min(share, 1.0), values["loss"], learning_rate, state.seconds))
        if share < 1.0 and config.validate_every and state.step % config.validate_every == 0:
            self.validate()
        if config.save_every and state.step % config.save_every == 0:
            self.save()

    def descend(self) -> float:
        """Clip the norm of all gradients, take a step where they are finite, and return the norm before."""
        self.scaler.unscale_(self.optimizer)
        norm = float(full_tensor(clip_grad_norm_(self.trained, self.config.gradient_clip)))
        # In fp16 an overflow is part of the search for a scale, and the scaler leaves the step out itself.
        if self.scaler.is_enabled() or math.isfinite(norm):
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return norm

    def _set_learning_rates(self) -> float:
        """Set every group's rate for the step to come; return the backbone's (its warm-up starts when it joins)."""
        config, step = self.config, self.state.step
        factor = learning_rate_factor(self.schedule, step=step, warmup_steps=config.warmup_steps, progress=self.share())
        joining = 1.0
        if self.head_first_steps and config.warmup_steps:
            joining = min(1.0, max(0, step + 1 - self.head_first_steps) / config.warmup_steps)
        for group in self.optimizer.param_groups:
            part = factor if group["is_head"] else factor * joining
            group["lr"] = config.learning_rate * part * group["rate_factor"]
        return config.learning_rate * factor * joining

    def _refuse_nonfinite(self, loss: float, norm: float) -> None:
        """Raise GateError when a loss or gradient is not finite; in fp16 a gradient may overflow, the loss is not scaled."""
        if math.isfinite(loss) and (self.scaler.is_enabled() or math.isfinite(norm)):
            return
        if self.saved != self.state.step:
            self.save()
        raise GateError(
            f"step {self.state.step + 1}",
            got=f"loss {loss:g}, gradient norm {norm:g}",
            expected="finite numbers",
            remedy=f"The weights after step {self.state.step} are in {self.config.output / STATE_FOLDER}. Check the "
            "data with `rfedge demos inspect`, or lower --learning-rate.",
        )

    def validate(self) -> dict[str, float]:
        values = self.measure()
        if values:
            self.write(self.state.step, values)
        return values

    def save(self) -> None:
        save_state(
            self.config.output / STATE_FOLDER,
            self.learner,
            self.optimizer,
            self.state,
            self.resume_key,
            keep=self.config.keep_states,
            processes=self.processes,
        )
        self.saved = self.state.step

    def _check_room(self) -> None:
        """Look for the room of checkpoint and states; a run that goes on has most of it already."""
        whole_bytes = sum(tensor.numel() * tensor.element_size() for tensor in self.learner.state_dict().values())
        state_bytes = whole_bytes + sum(2 * parameter.numel() * parameter.element_size() for parameter in self.trained)
        num_states = self.config.keep_states + 1 if self.resumed is None else 1
        check_room(self.config.output, whole_bytes + num_states * state_bytes, what="checkpoint and training states")


@contextmanager
def claimed_by_first(output: Path, processes: Processes) -> Iterator[None]:
    """Keep other runs out of `output`; every process of this one raises what the first one met."""
    with ExitStack() as stack:
        raise_together(processes, lambda: stack.enter_context(claimed(output)))
        yield


def raise_together(processes: Processes, check: Callable[[], object]) -> None:
    """Let the first process check, and every process raise the ArtifactError that it met."""
    refusal = ""
    try:
        if processes.is_first:
            check()
    except ArtifactError as error:
        refusal = str(error)
    if refusal := processes.agree(refusal):
        raise ArtifactError(refusal)


def learning_rate_factor(kind: ScheduleKind, *, step: int, warmup_steps: int, progress: float) -> float:
    """Return the factor of the peak learning rate for `step` (from 0); `progress` is the share of the run that is done.

    The warm-up ends at a tenth of the run at the latest.

    >>> [round(learning_rate_factor("cosine", step=s, warmup_steps=4, progress=s / 50), 2) for s in (0, 1, 4, 25, 50)]
    [0.25, 0.5, 0.98, 0.5, 0.0]
    """
    warm = min(1.0, max((step + 1) / warmup_steps, progress / _LONGEST_WARMUP_SHARE)) if warmup_steps else 1.0
    # A product, not two phases: when time ends the run, nobody knows where on the cosine the warm-up will stop.
    fall = 1.0 if kind == "constant" else 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    return warm * fall


METRICS_NAME: Final = "metrics.jsonl"
_TENSORBOARD_FOLDER: Final = "tensorboard"


MetricsWriter = Callable[[int, dict[str, float]], None]  # takes one row of numbers at a step


@contextmanager
def open_metrics(output: Path, *, resumed_step: int) -> Iterator[MetricsWriter]:
    """Yield a writer of rows `{"step": ..., name: value}`; rows after `resumed_step` are dropped first, and 0 drops all."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise BackendUnavailableError(
            "tensorboard", got="no such package", expected="tensorboard", remedy="Install it: pip install 'rfedge[train]'."
        ) from None
    path = output / METRICS_NAME
    _keep_rows(path, resumed_step)
    board = SummaryWriter(str(output / _TENSORBOARD_FOLDER), purge_step=resumed_step + 1 if resumed_step else None)
    with path.open("a") as file:

        def write(step: int, values: dict[str, float]) -> None:
            file.write(json.dumps({"step": step, **values}) + "\n")
            file.flush()
            for name, value in values.items():
                board.add_scalar(name, value, step)

        try:
            yield write
        finally:
            board.close()


def _keep_rows(path: Path, last_step: int) -> None:
    kept = []
    if last_step and path.is_file():
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the line a kill cut off
                continue
            if row["step"] <= last_step:
                kept.append(line + "\n")
    with atomic_file(path) as temporary:
        temporary.write_text("".join(kept))
