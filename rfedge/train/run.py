"""What every training run does around its steps: ends, metrics, states, and the refusal of what is not finite."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rfedge.errors import GateError
from rfedge.train.config import TrainConfig
from rfedge.train.distributed import Processes
from rfedge.train.metrics import MetricsWriter
from rfedge.train.optimizer import OptimizerStep
from rfedge.train.pretraining.config import PretrainConfig
from rfedge.train.result import TrainingStep
from rfedge.train.state import STATE_FOLDER, Progress, save_state
from rfedge.train.stopping import TrainingStop


@dataclass(eq=False, kw_only=True)
class TrainingRun(ABC):
    """The steps of one process, from `state` to the end; a kind of run adds what a step computes and what it measures.

    Attributes:
        learner: all that a state stores; `optimizer` is over its `trained` parameters, by name.
        resume_key: JSON values that a resumed run must repeat.
        last_step: after which the run ends; None where only time ends it.
        is_stopped: whether `stop` ended it, in every process after the same step.
    """

    config: TrainConfig | PretrainConfig
    learner: nn.Module
    optimizer: torch.optim.Optimizer
    trained: list[tuple[str, nn.Parameter]]
    resume_key: dict[str, Any]
    state: Progress
    write: MetricsWriter
    processes: Processes
    device: torch.device
    stop: TrainingStop
    last_step: int | None
    is_stopped: bool = False

    def __post_init__(self) -> None:
        """Begin the clock."""
        parameters = [parameter for _, parameter in self.trained]
        self.descent = OptimizerStep(self.config, self.optimizer, parameters, self.device, self.state.scaler)
        self.started = time.perf_counter() - self.state.seconds
        self.saved = self.state.step

    @abstractmethod
    def train_steps(self, on_step: Callable[[TrainingStep], None] | None) -> None:
        """Take the steps that are left."""

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """Return metrics of what was held out; an empty dict when nothing was."""

    def train(self, on_step: Callable[[TrainingStep], None] | None) -> dict[str, float]:
        """Run the steps that are left; return the last measurement."""
        self.stop.is_heard = True
        self.train_steps(on_step)
        measured = {} if self.is_stopped else self.validate()
        self.state.seconds = self.processes.sum({"seconds": self.my_seconds()})["seconds"]
        if self.saved != self.state.step:
            self.save()
        return measured

    def share(self) -> float:
        """Part of the run that was done at the end of the last step: of its steps or of its time, whichever is further."""
        of_steps = 0.0 if self.last_step is None else self.state.step / self.last_step
        minutes = self.config.minutes
        return max(of_steps, 0.0 if minutes is None else self.state.seconds / (60.0 * minutes))

    def is_over(self) -> bool:
        """Whether the run is done; on a busy machine its minutes may pass before the first step, which is taken anyway."""
        return self.is_stopped or (self.state.step > 0 and self.share() >= 1.0)

    def my_seconds(self) -> float:
        """What this process adds to the training time, which is by the clock of the first one: all must end together."""
        return time.perf_counter() - self.started if self.processes.is_first else 0.0

    def end_step(
        self,
        values: dict[str, float],
        learning_rate: float,
        num_frames: int,
        started_s: float,
        on_step: Callable[[TrainingStep], None] | None,
    ) -> None:
        """Take the optimizer's step, add up what all processes computed, and do whatever is due.

        Args:
            values: metrics of this process, which are summed; "loss" among them.
            started_s: when the step began, by `time.perf_counter`.

        Raises:
            GateError: the loss or its gradient is not finite; the last good weights are saved.
        """
        state, config = self.state, self.config
        norm = self.descent.step()
        state.scaler = self.descent.scaler_state
        stop = float(self.stop.reason is not None)
        values = self.processes.sum({**values, "num_frames": num_frames, "seconds": self.my_seconds(), "stop": stop})
        self.is_stopped = values.pop("stop") > 0.0
        self.refuse_nonfinite(values["loss"], norm)
        frames_per_second = values.pop("num_frames") / (time.perf_counter() - started_s)
        state.seconds = values.pop("seconds")
        state.step += 1
        state.add_loss(values["loss"])
        rates = {"learning_rate": learning_rate, **self.descent.report(norm), "frames_per_second": frames_per_second}
        self.write(state.step, {**values, **rates})
        share = self.share()
        if on_step is not None:
            on_step(TrainingStep(state.step, min(share, 1.0), values["loss"], learning_rate, state.seconds))
        if share < 1.0 and _is_due(config.validate_every, state.step):
            self.validate()
        if _is_due(config.save_every, state.step):
            self.save()

    def refuse_nonfinite(self, loss: float, norm: float) -> None:
        """Raise GateError, with the last good weights saved, when a loss or gradient is not finite.

        In fp16 a gradient may overflow while the scale is searched for; the loss is not scaled.
        """
        is_searching = self.config.mixed_precision == "fp16"
        if math.isfinite(loss) and (is_searching or math.isfinite(norm)):
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
        """Measure what was held out, and write it."""
        values = self.measure()
        if values:
            self.write(self.state.step, values)
        return values

    def save(self) -> None:
        """Write the state."""
        save_state(
            self.config.output / STATE_FOLDER,
            self.learner,
            self.optimizer,
            self.trained,
            self.state,
            self.resume_key,
            keep=self.config.keep_states,
            processes=self.processes,
        )
        self.saved = self.state.step


def _is_due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
