"""Pointing: queries that find things among a camera's patches, and read how they lie there.

A query reads a place where it attends (a soft argmax, Levine et al., JMLR 2016, section 4), and the patch in which a thing
appears is a class of its own: the language loss alone teaches a small policy where its hand is and not where the blocks
are (docs/log.md). The queries exist in training alone; no checkpoint has them.

`rfedge train --pointing-weight` goes on with them beside imitation: actions alone teach a small tower little and let it
forget what `rfedge pretrain` taught it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from rfedge.data.scene.questions import SceneFacts
from rfedge.data.scene.scenes import FURNITURE
from rfedge.data.windows import SamplerState, WindowSampler
from rfedge.errors import ConfigError
from rfedge.model import RoboFlamingo
from rfedge.train.config import TrainConfig
from rfedge.train.distributed import Processes
from rfedge.train.pretraining.scene_batches import SceneBatch, SceneLoader, SceneQuestions, VisionFeatures, encode_images
from rfedge.train.sources import TrainingData

# N = frames, T = tokens, P = patches, V = width, B = blocks, F = furniture, L = things in a place

_NUM_BLOCKS: Final = 3
_NUM_THINGS: Final = _NUM_BLOCKS + len(FURNITURE)
# Of a loss of 1: errors are counted in 5 cm, and from the middle of the workspace.
_UNIT_M: Final = 0.05
_MIDDLE_M: Final = (0.0, -0.08, 0.48)
# A thing within reach of the gripper's camera.
_NEAR_M: Final = 0.15
_PATCH_WEIGHT: Final = 0.3  # a nat of the patch beside 5 cm of the place
_PLACE, _TURN = 3, 2  # numbers read of a thing: its place, and cosine and sine of twice its turn
# Name of the queries as a part of the policy: they learn and are saved with it, and are in no checkpoint.
POINTING: Final = "pointing"
# Separates the order of these frames from that of the windows, which comes from the same seed.
_ORDER_STREAM: Final = 7


@dataclass(frozen=True, slots=True)
class PointingScore:
    """How far off the queries point."""

    # sum of the errors of places (smooth L1 in 5 cm), turns and patches, of both cameras' queries and the latents'; the only
    # one with a gradient
    loss: torch.Tensor
    blocks_m: torch.Tensor  # float32 (N, B), distance of each block from where the static camera's queries point
    reach_m: torch.Tensor  # float32 (n,), the same for the gripper camera's and what is near it
    turns_rad: torch.Tensor  # float32 (n,), error of the turn relative to the tool of what is near it


class Pointing(nn.Module):
    """The queries: of each camera's patches, and of the latents that the text reads.

    The static camera's say where blocks, furniture and tool are, the gripper camera's the way from the tool to each block
    and piece of furniture that is near, the latents' both.
    """

    def __init__(self, vision_width: int) -> None:
        super().__init__()
        self.static = _Queries(vision_width, _NUM_THINGS + 1)
        self.gripper = _Queries(vision_width, _NUM_THINGS)
        self.latents = _Queries(vision_width, 2 * _NUM_THINGS + 1)

    @classmethod
    def of(cls, policy: RoboFlamingo, seed: int) -> Pointing:
        """Return queries for a policy, initialised from `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(policy.config.vision.width)

    def forward(self, features: VisionFeatures, batch: SceneBatch) -> PointingScore:
        places = (batch.places_m - batch.places_m.new_tensor(_MIDDLE_M)) / _UNIT_M
        ways = (batch.places_m[:, :-1] - batch.places_m[:, -1:]) / _UNIT_M
        near = ways.norm(dim=-1) < _NEAR_M / _UNIT_M
        near_block = near[:, :_NUM_BLOCKS]
        in_world, to_tool = batch.turns_rad.unbind(dim=-1)
        static, static_turn, static_look = self.static(features.static)
        gripper, gripper_turn, gripper_look = self.gripper(features.gripper)
        both, both_turn, _ = self.latents(features.latents)
        reach, reach_turn = both[:, _NUM_THINGS + 1 :], both_turn[:, _NUM_THINGS + 1 :]
        loss = (
            _place_loss(static, places)
            + _smooth_l1(gripper[near], ways[near])
            + _place_loss(both[:, : _NUM_THINGS + 1], places)
            + _smooth_l1(reach[near], ways[near])
            + _turn_loss(static_turn[:, :_NUM_BLOCKS], in_world)
            + _turn_loss(both_turn[:, :_NUM_BLOCKS], in_world)
            + _turn_loss(gripper_turn[:, :_NUM_BLOCKS][near_block], to_tool[near_block])
            + _turn_loss(reach_turn[:, :_NUM_BLOCKS][near_block], to_tool[near_block])
            + _PATCH_WEIGHT * (_patch_loss(static_look, batch.uv_static) + _patch_loss(gripper_look, batch.uv_gripper))
        )
        with torch.no_grad():
            found = torch.atan2(*reversed(gripper_turn[:, :_NUM_BLOCKS][near_block].unbind(dim=-1)))
            return PointingScore(
                loss,
                _UNIT_M * (static - places)[:, :_NUM_BLOCKS].norm(dim=-1),
                _UNIT_M * (gripper - ways)[:, :_NUM_BLOCKS][near_block].norm(dim=-1),
                (torch.remainder(found - 2 * to_tool[near_block] + math.pi, 2 * math.pi) - math.pi).abs() / 2,
            )


class _Queries(nn.Module):
    """Tokens (N, T, V) -> places (N, L, 3), turns (N, L, 2) and the log of each query's attention (N, L, T)."""

    def __init__(self, width: int, num_things: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.look = nn.Linear(width, num_things)
        self.place = nn.Linear(width, (_PLACE + _TURN) * num_things)
        nn.init.normal_(self.look.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with torch.autocast(tokens.device.type, enabled=False):  # places to a millimetre need more than bf16
            said = self.ln(tokens.float())
            looks = self.look(said).transpose(1, 2).log_softmax(dim=-1)
            read = self.place(said).unflatten(-1, (-1, _PLACE + _TURN))
            place, turn = torch.einsum("nlt,ntlx->nlx", looks.exp(), read).split((_PLACE, _TURN), dim=-1)
            return place, turn, looks


def patch_shares(uv: torch.Tensor, num_patches: int) -> torch.Tensor:
    """Share points (..., 2) among the four patches around each: (..., num_patches), of sum 1, or 0 out of view."""
    side = math.isqrt(num_patches)
    inside = ((uv >= 0) & (uv <= 1)).all(dim=-1, keepdim=True)
    at = (uv.nan_to_num() * side - 0.5).clamp(0, side - 1)
    along = (1 - (at[..., None] - torch.arange(side, dtype=at.dtype)).abs()).clamp(min=0)
    columns, rows = along.unbind(dim=-2)
    return (rows[..., :, None] * columns[..., None, :]).flatten(-2) * inside


def _patch_loss(looks: torch.Tensor, uv: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the attention of queries over patches, of all things in view; it counts as in `_place_loss`."""
    shares = patch_shares(uv, looks.shape[-1])
    return -(shares * looks).sum() / shares.sum().clamp(min=1.0) * (looks.shape[1] / (_NUM_BLOCKS + 1))


def _place_loss(found: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Mean of blocks and tool, to which furniture adds: it is soon found, and must not make their part smaller."""
    return _smooth_l1(found, right) * (found.shape[1] / (_NUM_BLOCKS + 1))


def _turn_loss(found: torch.Tensor, right_rad: torch.Tensor) -> torch.Tensor:
    """A block looks the same after half a turn, so twice the turn is what can be said."""
    return 0.5 * _smooth_l1(found, torch.stack([torch.cos(2 * right_rad), torch.sin(2 * right_rad)], dim=-1))


def _smooth_l1(found: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The mean, and 0 where nothing was to be found."""
    return functional.smooth_l1_loss(found, right, reduction="sum") / max(found.numel(), 1)


def pointing_loader(
    config: TrainConfig, sources: TrainingData, state: SamplerState, step: int, processes: Processes
) -> SceneLoader:
    """Load the frames that the queries point at, from a state on."""
    if processes.world_size > 1:
        remedy = "Leave --pointing-weight out, or train in one process."
        raise ConfigError("pointing-weight", got=f"{processes.world_size} processes", expected="one", remedy=remedy)
    index = sources.training
    facts = SceneFacts.of(sources.dataset, sources.cache, index)
    frames = SceneQuestions(index, sources.cache, facts, sources.tokenizer, has_texts=False)
    sampler = WindowSampler(len(index), config.pointing_batch_size, config.seed + _ORDER_STREAM, state)
    return SceneLoader(frames, sampler, step=step)


def pointing_loss(policy: RoboFlamingo, batch: SceneBatch, light: float) -> torch.Tensor:
    """Return the loss of the policy's queries, which point at what the frames show."""
    loss: torch.Tensor = policy.get_submodule(POINTING)(encode_images(policy, batch, light), batch).loss
    return loss
