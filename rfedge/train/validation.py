"""What a policy makes of held-out windows."""

from __future__ import annotations

from functools import partial

import torch

from rfedge.model import RoboFlamingo
from rfedge.train.batches.loader import batch_tensors, window_forward
from rfedge.train.compute_context import ComputeContext
from rfedge.train.config import TrainConfig
from rfedge.train.distributed import Processes
from rfedge.train.losses import batch_loss
from rfedge.train.sources import TrainingData


@torch.no_grad()
def measure_windows(
    policy: RoboFlamingo, sources: TrainingData, config: TrainConfig, scope: ComputeContext, processes: Processes
) -> dict[str, float]:
    """Return the losses of evenly spread held-out windows as `validation_...`; an empty dict when there are none.

    The policy must be in evaluation mode. Several processes measure a part each; they must call it together.
    """
    index = sources.held_out
    if not len(index):
        return {}
    chosen = index.spread(config.validation_windows)
    sums = dict.fromkeys(("loss", "pose_loss", "gripper_loss", "gripper_accuracy"), 0.0)
    num_actions = 0
    for numbers, counts in processes.shares(chosen, config.batch_size):
        batch = batch_tensors(index, sources.cache, sources.table, list(numbers)).to(scope.device)
        pose, gripper_logit, *_ = scope.run(partial(window_forward, policy, batch))
        if not counts:
            continue
        parts = batch_loss(config, batch, pose, gripper_logit)
        count = int(batch.action_mask.sum())  # batches weigh by what they hold, so their size does not matter
        num_actions += count
        for name, value in zip(sums, (parts.total, parts.pose, parts.gripper, parts.gripper_accuracy), strict=True):
            sums[name] += float(value) * count
    totals = processes.sum({**sums, "num_actions": num_actions})
    return {f"validation_{name}": totals[name] / totals["num_actions"] for name in sums}
