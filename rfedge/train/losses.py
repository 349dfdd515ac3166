"""Behaviour cloning: a regression on the pose plus a weighted cross-entropy on the gripper, over recorded actions only.

Source: RoboFlamingo section 4.4; its paper writes MSE, its released code a Huber loss with delta 1. Both are here.

Beside it a linear probe may read the task off a policy's feature, for the training alone: its cross-entropy asks the decoder
to understand an instruction from the first step on, however it is worded; the actions alone say so only where two tasks move
differently. Measured: docs/adr/0016-instructions-from-a-grammar.md.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from rfedge.messages import POSE_SIZE
from rfedge.model import RoboFlamingo
from rfedge.train.config import LossKind

# B = windows, W = frames, K = chunk


class LossParts(NamedTuple):
    total: torch.Tensor  # pose + weight * gripper; the only one with a gradient
    pose: torch.Tensor  # masked mean of the regression loss, normalised units squared
    gripper: torch.Tensor  # masked mean of the cross-entropy, nats
    gripper_accuracy: torch.Tensor  # share of recorded actions whose gripper command is right at the threshold of 0


def policy_loss(
    pose: torch.Tensor,
    gripper_logit: torch.Tensor,
    actions: torch.Tensor,
    mask: torch.Tensor,
    *,
    kind: LossKind,
    gripper_weight: float,
    num_actions: int | None = None,
) -> LossParts:
    """Compare pose (B, W, K, 6) and gripper logit (B, W, K) with actions (B, W, K, 7) where `mask` (B, W, K) is true.

    `num_actions` are the recorded actions of a whole batch of which this is a part: the parts add up to its mean.
    """
    regression = functional.huber_loss if kind == "huber" else functional.mse_loss
    is_open = (actions[..., POSE_SIZE] > 0).to(gripper_logit.dtype)
    weight = mask.to(pose.dtype)
    count = weight.sum() if num_actions is None else weight.new_tensor(num_actions)
    pose_loss = (regression(pose, actions[..., :POSE_SIZE], reduction="none").mean(dim=-1) * weight).sum() / count
    entropy = functional.binary_cross_entropy_with_logits(gripper_logit, is_open, reduction="none")
    gripper_loss = (entropy * weight).sum() / count
    right = ((gripper_logit > 0) == (is_open > 0)).to(pose.dtype)
    return LossParts(
        total=pose_loss + gripper_weight * gripper_loss,
        pose=pose_loss.detach(),
        gripper=gripper_loss.detach(),
        gripper_accuracy=(right * weight).sum() / count,
    )


# Name of the probe as a part of the policy: it learns and is saved with it, and is in no checkpoint.
TASK_PROBE: Final = "task_probe"


def attach_task_probe(policy: RoboFlamingo, num_tasks: int, seed: int) -> None:
    """Give a policy a probe for tasks 0 to `num_tasks` - 1, initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy.add_module(TASK_PROBE, nn.Linear(policy.config.feature_size, num_tasks))


def task_loss(policy: RoboFlamingo, features: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor | None:
    """Mean cross-entropy, nats, of features (N, D) of tasks int64 (N,); None where the policy has no probe."""
    probe = getattr(policy, TASK_PROBE, None)
    return None if probe is None else functional.cross_entropy(probe(features).float(), tasks)
