"""Batches of frames with a report and a request of each as tokens, and pointing: queries that find things in a picture.

A query reads a place where it attends (a soft argmax, Levine et al., JMLR 2016, section 4), and the patch in which a thing
appears is a class of its own: the language loss alone teaches a small policy where its hand is and not where the blocks
are (docs/log.md). The queries exist in training alone; no checkpoint has them.

`rfedge train --pointing-weight` goes on with them beside imitation: actions alone teach a small tower little and let it
forget what `rfedge pretrain` taught it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from rfedge.data.calvin import Segment
from rfedge.data.frame_cache import FrameCache
from rfedge.data.scene.questions import NUM_ANSWER_WORDS, NUMBERS, SceneFacts, TextPiece, ask_report, ask_request
from rfedge.data.scene.scenes import FURNITURE
from rfedge.data.windows import SamplerState, WindowIndex, WindowSampler
from rfedge.errors import ConfigError
from rfedge.language.tokenizer import IMAGE, InstructionTokenizer
from rfedge.model import RoboFlamingo
from rfedge.train.batches.image_text import NO_LABEL, pad_labelled
from rfedge.train.batches.loader import Prefetch
from rfedge.train.batches.wording import Wording
from rfedge.train.config import TrainConfig
from rfedge.train.distributed import Processes
from rfedge.train.sources import TrainingData

# N = frames, Q = texts (two a frame), T = tokens

# Separates the samples of what is asked from the order of frames, which comes from the same seed.
_QUESTION_STREAM = 5
_KEPT_TEXTS = 10_000


@dataclass(frozen=True, slots=True)
class SceneBatch:
    """N frames and two texts of each."""

    image_static: torch.Tensor  # uint8 (N, 200, 200, 3)
    image_gripper: torch.Tensor  # uint8 (N, 84, 84, 3)
    token_ids: torch.Tensor  # int64 (2 N, T), padded on the right; texts 2 i and 2 i + 1 are of frame i
    labels: torch.Tensor  # int64 (2 N, T), ids that are to be said, NO_LABEL on all others
    # float32 (N, 8, 3), of red, blue and pink block, furniture (`rfedge.data.scene.scenes`) and tool
    places_m: torch.Tensor
    turns_rad: torch.Tensor  # float32 (N, 3, 2), of the blocks about the vertical, in the world and relative to the tool
    uv_static: torch.Tensor  # float32 (N, 8, 2), where `places_m` appear in the static picture (`rfedge.data.scene.scenes`)
    uv_gripper: torch.Tensor  # float32 (N, 7, 2), where all but the tool appear in the gripper's picture; NaN behind it

    def to(self, device: torch.device) -> SceneBatch:
        return SceneBatch(*(getattr(self, name).to(device) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class VisionFeatures:
    """Vision features of N frames before any text: patch tokens (N, P, V) of each camera, and latents (N, R, V)."""

    static: torch.Tensor
    gripper: torch.Tensor
    latents: torch.Tensor


@dataclass(frozen=True, slots=True)
class SceneScore:
    """How the texts of a batch were said."""

    loss: torch.Tensor  # mean cross-entropy of what was to be said, nats a token; the only one with a gradient
    num_tokens: int
    num_right: int
    distances: torch.Tensor  # float32 (n,), counts of 5 mm between each number said and the right one, numbers alone


@dataclass(eq=False)
class SceneQuestions:
    """The frames of an index with what may be asked about them; without `has_texts` batches have no tokens."""

    index: WindowIndex
    cache: FrameCache
    facts: SceneFacts
    tokenizer: InstructionTokenizer
    _: KW_ONLY
    wording: Wording | None = None  # says the instructions anew at every step; None for the demonstrations' own
    has_texts: bool = True

    def __post_init__(self) -> None:
        spans = self.tokenizer.spans
        self._ids = lru_cache(_KEPT_TEXTS)(lambda words: [token_id for token_id, _ in spans(words)])
        self._start = [token_id for token_id, _ in spans(self.tokenizer.tokens.begin_of_text + IMAGE)]
        if self.has_texts:
            number_ids(self.tokenizer)

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, chosen: Sequence[int], rng: np.random.Generator) -> SceneBatch:
        """Return the frames with these numbers; what their reports name is sampled from `rng`."""
        rows, places = [], []
        for number in chosen:
            at = self.index.windows[number]
            segment = self.index.segments[at.segment]
            places.append(self.cache.row(segment.start) + at.offset)
            if self.has_texts:
                rows += [
                    self._encode(ask_report(self.facts, number, rng)),
                    self._encode(ask_request(self.facts, number, self._instruction(segment, rng))),
                ]
        return SceneBatch(
            torch.from_numpy(np.asarray(self.cache.rgb_static[places])),
            torch.from_numpy(np.asarray(self.cache.rgb_gripper[places])),
            *pad_labelled(rows, self.tokenizer.pad_id),
            *(torch.from_numpy(array) for array in self.facts.scene_labels(chosen)),
        )

    def _instruction(self, segment: Segment, rng: np.random.Generator) -> str:
        if self.wording is None:
            return segment.instruction
        room = self.tokenizer.text_length - len(self._start) - NUM_ANSWER_WORDS
        return self.wording.sample(segment, rng, most_tokens=room)

    def _encode(self, pieces: Sequence[TextPiece]) -> list[tuple[int, int]]:
        row = [(token_id, NO_LABEL) for token_id in self._start]
        for piece in pieces:
            row += [(token_id, token_id if piece.is_said else NO_LABEL) for token_id in self._ids(piece.words)]
        return row[: self.tokenizer.text_length]


def number_ids(tokenizer: InstructionTokenizer) -> torch.Tensor:
    """Return int64 (200,): the token of each of `NUMBERS`."""
    ids = [[token_id for token_id, _ in tokenizer.spans(number)] for number in NUMBERS]
    split = [number for number, tokens in zip(NUMBERS, ids, strict=True) if len(tokens) != 1]
    if split:
        expected = "one token for each of 0 to 199"
        remedy = "Start from a preset, or raise its vocab_size."
        raise ConfigError("tokenizer", got=f"several tokens for the number {split[0]}", expected=expected, remedy=remedy)
    return torch.tensor([tokens[0] for tokens in ids])


def encode_images(policy: RoboFlamingo, batch: SceneBatch, light: float = 0.0) -> VisionFeatures:
    """Encode the frames of a batch; `light` is the deviation of a random gain of each channel, half of it of an offset."""
    backbone = policy.backbone
    images = torch.cat([backbone.preprocess_static(batch.image_static), backbone.preprocess_gripper(batch.image_gripper)])
    if light:
        shape = (len(images), images.shape[1] + 1, 1, 1)  # one number for all channels beside one of each
        gain, offset = light * torch.randn(shape), 0.5 * light * torch.randn(shape)
        images = images * (1 + gain[:, :1] + 0.5 * gain[:, 1:]) + offset[:, :1] + 0.5 * offset[:, 1:]
    tokens = backbone.vision(images)
    static, gripper = tokens.chunk(2)
    return VisionFeatures(static, gripper, backbone.media(tokens))


def scene_score(policy: RoboFlamingo, batch: SceneBatch, features: VisionFeatures, numbers: torch.Tensor) -> SceneScore:
    """Run the language model over the texts of a batch, whose frames `encode_images` has seen."""
    backbone = policy.backbone
    media = features.latents.repeat_interleave(2, dim=0)
    hidden = backbone.decoder.tokens(policy.embed_text(batch.token_ids[:, :-1]), media, feature="final_norm")
    labels = batch.labels[:, 1:]
    said = labels != NO_LABEL
    logits, wanted = policy.logits(hidden[said][None])[0], labels[said]
    loss = functional.cross_entropy(logits.float(), wanted)
    with torch.no_grad():
        chosen = logits.argmax(dim=-1)
        is_number = torch.isin(wanted, numbers)
        nearest = logits[is_number][:, numbers].argmax(dim=-1)
        right = (wanted[is_number][:, None] == numbers).int().argmax(dim=-1)
    return SceneScore(loss, len(wanted), int((chosen == wanted).sum()), (nearest - right).abs().to(torch.float32))


def scene_loader(
    questions: SceneQuestions, sampler: WindowSampler, *, step: int
) -> Prefetch[tuple[SceneBatch, SamplerState]]:
    """Make batches one ahead, each of (seed, step) and the sampler's state alone, and the sampler's state after it."""
    steps = itertools.count(step)

    def plan() -> Callable[[], tuple[SceneBatch, SamplerState]]:
        rng = np.random.default_rng([sampler.seed, next(steps), _QUESTION_STREAM])
        chosen, state = sampler.next_batch(), sampler.state
        return lambda: (questions.batch(chosen, rng), state)

    return Prefetch(plan)


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
) -> Prefetch[tuple[SceneBatch, SamplerState]]:
    """Load the frames that the queries point at, from a state on."""
    if processes.world_size > 1:
        remedy = "Leave --pointing-weight out, or train in one process."
        raise ConfigError("pointing-weight", got=f"{processes.world_size} processes", expected="one", remedy=remedy)
    index = sources.training
    facts = SceneFacts.of(sources.dataset, sources.cache, index)
    frames = SceneQuestions(index, sources.cache, facts, sources.tokenizer, has_texts=False)
    sampler = WindowSampler(len(index), config.pointing_batch_size, config.seed + _ORDER_STREAM, state)
    return scene_loader(frames, sampler, step=step)


def pointing_loss(policy: RoboFlamingo, batch: SceneBatch, light: float) -> torch.Tensor:
    """Return the loss of the policy's queries, which point at what the frames show."""
    loss: torch.Tensor = policy.get_submodule(POINTING)(encode_images(policy, batch, light), batch).loss
    return loss
