"""What a policy makes of held-out windows."""

from __future__ import annotations

import torch

from rfedge.model import RoboFlamingo
from rfedge.train.batches import batch_tensors, window_forward
from rfedge.train.config import TrainConfig
from rfedge.train.losses import batch_loss
from rfedge.train.sources import TrainingData

__all__ = ["measure_windows"]


@torch.no_grad()
def measure_windows(
    policy: RoboFlamingo, sources: TrainingData, config: TrainConfig, device: torch.device
) -> dict[str, float]:
    """Return the losses of evenly spread held-out windows as `validation_...`; an empty dict when there are none.

    The policy must be in evaluation mode.
    """
    index = sources.held_out
    if not len(index):
        return {}
    chosen = index.spread(config.validation_windows)
    sums = dict.fromkeys(("loss", "pose_loss", "gripper_loss", "gripper_accuracy"), 0.0)
    num_actions = 0
    for first in range(0, len(chosen), config.batch_size):
        numbers = chosen[first : first + config.batch_size]
        batch = batch_tensors(index, sources.cache, sources.table, numbers).to(device)
        pose, gripper_logit = window_forward(policy, batch)
        parts = batch_loss(config, batch, pose, gripper_logit)
        count = int(batch.action_mask.sum())  # batches weigh by what they hold, so their size does not matter
        num_actions += count
        for name, value in zip(sums, (parts.total, parts.pose, parts.gripper, parts.gripper_accuracy), strict=True):
            sums[name] += float(value) * count
    return {f"validation_{name}": value / num_actions for name, value in sums.items()}
