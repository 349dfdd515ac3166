"""Behaviour cloning: a regression on the pose plus a weighted cross-entropy on the gripper, over recorded actions only.

Source: RoboFlamingo section 4.4; its paper writes MSE, its released code a Huber loss with delta 1. Both are here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch.nn import functional

from rfedge.messages import POSE_SIZE
from rfedge.train.config import LossKind, TrainConfig

if TYPE_CHECKING:
    from rfedge.train.batches.image_text import PairPass

# B = windows, W = frames, K = chunk


class LabelledBatch(Protocol):
    """Labels (B, W, K, 7) and which of them were recorded, bool (B, W, K)."""

    @property
    def actions(self) -> torch.Tensor: ...

    @property
    def action_mask(self) -> torch.Tensor: ...


B = TypeVar("B", bound=LabelledBatch)


@dataclass(frozen=True, slots=True)
class LossParts:
    """Scalars of one batch.

    Attributes:
        total: pose + weight * gripper; the only one with a gradient.
        pose: masked mean of the regression loss, normalised units squared.
        gripper: masked mean of the cross-entropy, nats.
        gripper_accuracy: share of recorded actions whose gripper command is right at the threshold of 0.
    """

    total: torch.Tensor
    pose: torch.Tensor
    gripper: torch.Tensor
    gripper_accuracy: torch.Tensor


def batch_loss(
    config: TrainConfig,
    batch: LabelledBatch,
    pose: torch.Tensor,
    gripper_logit: torch.Tensor,
    num_actions: int | None = None,
) -> LossParts:
    """Compare the predictions for a batch with its labels, with the run's kind of loss and weight of the gripper."""
    return policy_loss(
        pose.float(),
        gripper_logit.float(),
        batch.actions,
        batch.action_mask,
        kind=config.loss,
        gripper_weight=config.gripper_weight,
        num_actions=num_actions,
    )


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
    """Compare predictions with labels where `mask` is true.

    Args:
        pose: float (B, W, K, 6) in [-1, 1].
        gripper_logit: float (B, W, K); positive means open.
        actions: float (B, W, K, 7), gripper -1 or 1.
        mask: bool (B, W, K), true on recorded actions.
        kind: "huber" (delta 1) or "mse".
        gripper_weight: factor of the gripper term.
        num_actions: recorded actions of the whole batch where this is a part of it: what is returned then adds up, over
            all parts, to what the whole has. Without it, those of `mask`, at least one.
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


class StepLosses:
    """Computes the losses of a step's passes and keeps what the metrics say of them: sums over the passes."""

    def __init__(self) -> None:
        self._values: dict[str, list[torch.Tensor]] = {}

    def of_windows(
        self,
        config: TrainConfig,
        part: B,
        num_actions: int,
        forward: Callable[[B], tuple[torch.Tensor, ...]],
    ) -> torch.Tensor:
        """Return the loss of some windows, as their part in the mean over all `num_actions` of the batch.

        `forward` returns pose and gripper logit, and where there is a task probe its loss.
        """
        pose, gripper_logit, *probed = forward(part)
        losses = batch_loss(config, part, pose, gripper_logit, num_actions)
        self._keep("loss", losses.total)
        self._keep("pose_loss", losses.pose)
        self._keep("gripper_loss", losses.gripper)
        self._keep("gripper_accuracy", losses.gripper_accuracy)
        if not probed:
            return losses.total
        share = part.action_mask.sum() / num_actions
        return losses.total + config.task_weight * share * self.keep("task_loss", probed[0])

    def of_pairs(self, pairs: PairPass) -> torch.Tensor:
        """Return the weighted loss of some image-text pairs."""
        loss = pairs.loss()
        self._keep(pairs.name, loss)
        return pairs.weight * loss

    def keep(self, name: str, loss: torch.Tensor) -> torch.Tensor:
        """Return a pass's loss, which the metrics call `name`."""
        self._keep(name, loss)
        return loss

    def values(self) -> dict[str, float]:
        """Return the sums, asked for once a step has been taken: numbers make a GPU wait."""
        return {name: sum(float(value) for value in values) for name, values in self._values.items()}

    def _keep(self, name: str, value: torch.Tensor) -> None:
        self._values.setdefault(name, []).append(value.detach())
