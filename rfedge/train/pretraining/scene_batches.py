"""Batches of questions about demonstration frames: both cameras' images, a report and a request of each frame as tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional

from rfedge.data.calvin import Segment
from rfedge.data.frame_cache import FrameCache
from rfedge.data.scene.questions import NUM_ANSWER_WORDS, NUMBERS, SceneFacts, TextPiece, ask_report, ask_request
from rfedge.data.windows import SamplerState, WindowIndex, WindowSampler
from rfedge.errors import ConfigError
from rfedge.language.tokenizer import IMAGE, InstructionTokenizer
from rfedge.model import RoboFlamingo
from rfedge.train.batches.image_text import NO_LABEL, pad_labelled
from rfedge.train.batches.loader import Prefetch
from rfedge.train.batches.wording import Wording

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
    uv_static: torch.Tensor  # float32 (N, 8, 2), where `places_m` appear in the static picture (`rfedge.data.scene.cameras`)
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


class SceneLoader(Prefetch[tuple[SceneBatch, SamplerState]]):
    """Makes batches one ahead; a batch depends on (seed, step) and the sampler's state alone."""

    def __init__(self, questions: SceneQuestions, sampler: WindowSampler, *, step: int) -> None:
        self._questions = questions
        self._sampler = sampler
        self._step = step
        super().__init__(self._plan_batch)

    def _plan_batch(self) -> Callable[[], tuple[SceneBatch, SamplerState]]:
        rng = np.random.default_rng([self._sampler.seed, self._step, _QUESTION_STREAM])
        chosen = self._sampler.next_batch()
        state = self._sampler.state
        self._step += 1
        return lambda: (self._questions.batch(chosen, rng), state)
