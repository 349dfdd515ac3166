"""AdamW in 32 bits, or with its moments in 8 (bitsandbytes), and the step it takes in any precision.

Two moments in 32 bits cost twice the weights that learn; in 8 bits, with a scale for every 256 numbers, half of them.
Source: Dettmers et al., 8-bit Optimizers via Block-wise Quantization (2022).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from rfedge.model.bitsandbytes_weights import import_bitsandbytes
from rfedge.train.compute_context import full_tensor
from rfedge.train.config import TrainConfig
from rfedge.train.pretraining.config import PretrainConfig


def make_optimizer(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return the optimizer of `config` over `groups`, see `rfedge.train.trainable.optimizer_groups`.

    Raises:
        BackendUnavailableError: bitsandbytes is not installed or does not load.
    """
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    optimizer: torch.optim.Optimizer = import_bitsandbytes().optim.AdamW8bit(groups, lr=config.learning_rate)
    return optimizer


class OptimizerStep:
    """Gradients into a step: scaled where fp16 would lose them, clipped, taken.

    Args:
        scaler: what `scaler_state` returned in the part of the run before.
    """

    def __init__(
        self,
        config: TrainConfig | PretrainConfig,
        optimizer: torch.optim.Optimizer,
        parameters: list[torch.nn.Parameter],
        device: torch.device,
        scaler: dict[str, float],
    ) -> None:
        self.optimizer = optimizer
        self.parameters = parameters
        self._clip = config.gradient_clip
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.mixed_precision == "fp16")
        if scaler:
            self._scaler.load_state_dict(scaler)

    @property
    def scaler_state(self) -> dict[str, float]:
        """JSON values; empty in any precision but fp16."""
        return self._scaler.state_dict()

    def report(self, norm: float) -> dict[str, float]:
        """Return the norm as the metrics tell it: JSON has no infinity, and overflows in fp16 are part of its search."""
        if not self._scaler.is_enabled():
            return {"gradient_norm": norm}
        return {"loss_scale": self._scaler.get_scale()} | ({"gradient_norm": norm} if math.isfinite(norm) else {})

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of `loss`."""
        self._scaler.scale(loss).backward()

    def step(self) -> float:
        """Clip the norm of all gradients, take a step, and return the norm before.

        A step whose gradients are not finite is left out, so that the weights stay those of the last good one; in fp16 it is
        part of the search for a scale, which is halved.
        """
        self._scaler.unscale_(self.optimizer)
        norm = full_tensor(clip_grad_norm_(self.parameters, self._clip))
        if not self._scaler.is_enabled() and not math.isfinite(float(norm)):
            return float(norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return float(norm)
