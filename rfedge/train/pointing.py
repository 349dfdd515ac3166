"""Pointing: queries that find things among what a camera's patches say, and tell where they are in metres.

The language loss alone teaches a small policy where its hand is and not where the blocks are: a number is one of 200 words,
and its gradient reaches a patch through latents and layers. A query that looks at the patches and reads a place from where
it looks has to learn little more than the look of a thing (a soft argmax, Levine et al., JMLR 2016, section 4). The queries
are for training alone; no checkpoint has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from rfedge.model import RoboFlamingo
from rfedge.train.scene_batches import SceneBatch, Sight

__all__ = ["Pointing", "PointingScore"]

# N = frames, T = tokens, V = width, B = blocks, L = things in a place

_NUM_BLOCKS: Final = 3
# Of a loss of 1: errors are counted in 5 cm, and from the middle of the workspace.
_UNIT_M: Final = 0.05
_MIDDLE_M: Final = (0.0, -0.08, 0.48)
# A block within reach of the gripper's camera.
_NEAR_M: Final = 0.15


@dataclass(frozen=True, slots=True)
class PointingScore:
    """How far off the queries point.

    Attributes:
        loss: smooth L1 of places in 5 cm, the sum of four means: of each camera's queries and of both kinds of the
            latents'; the only one with a gradient.
        blocks_m: float32 (N, B), distance of each block from where the static camera's queries point.
        reach_m: float32 (n,), the same for the gripper camera's and what is near it.
    """

    loss: torch.Tensor
    blocks_m: torch.Tensor
    reach_m: torch.Tensor


class Pointing(nn.Module):
    """The queries: of each camera's patches, and of the latents that the text reads.

    The static camera's say where blocks and tool are, the gripper camera's the way from the tool to each block that is near,
    the latents' both.
    """

    def __init__(self, vision_width: int) -> None:
        super().__init__()
        self.static = _Queries(vision_width, _NUM_BLOCKS + 1)
        self.gripper = _Queries(vision_width, _NUM_BLOCKS)
        self.latents = _Queries(vision_width, 2 * _NUM_BLOCKS + 1)

    @classmethod
    def of(cls, policy: RoboFlamingo, seed: int) -> Pointing:
        """Return queries for a policy, drawn from `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(policy.config.vision.width)

    def forward(self, sight: Sight, batch: SceneBatch) -> PointingScore:
        places = (batch.places_m - batch.places_m.new_tensor(_MIDDLE_M)) / _UNIT_M
        ways = (batch.places_m[:, :-1] - batch.places_m[:, -1:]) / _UNIT_M
        near = ways.norm(dim=-1) < _NEAR_M / _UNIT_M
        static, gripper = self.static(sight.static), self.gripper(sight.gripper)
        both = self.latents(sight.latents)
        wrong_ways = [_smooth_l1(found[near], ways[near]) for found in (gripper, both[:, -_NUM_BLOCKS:])]
        loss = _smooth_l1(static, places) + _smooth_l1(both[:, : _NUM_BLOCKS + 1], places) + sum(wrong_ways)
        with torch.no_grad():
            return PointingScore(
                loss,
                _UNIT_M * (static - places)[:, :_NUM_BLOCKS].norm(dim=-1),
                _UNIT_M * (gripper - ways)[near].norm(dim=-1),
            )


class _Queries(nn.Module):
    """Tokens (N, T, V) -> places (N, L, 3): each query's look, and what is read where it looks."""

    def __init__(self, width: int, num_things: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.look = nn.Linear(width, num_things)
        self.place = nn.Linear(width, 3 * num_things)
        nn.init.normal_(self.look.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(tokens.device.type, enabled=False):  # places to a millimetre need more than bf16
            said = self.ln(tokens.float())
            looks = self.look(said).softmax(dim=1)
            places = self.place(said).unflatten(-1, (-1, 3))
            return torch.einsum("ntl,ntlx->nlx", looks, places)


def _smooth_l1(found: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The mean, and 0 where nothing was to be found."""
    return functional.smooth_l1_loss(found, right, reduction="sum") / max(found.numel(), 1)
