"""Co-training: beside every batch of robot windows, one batch of captions and one of questions for the language model.

The decoder reads one image, the instruction's place is taken by the pair's text, and the loss is that of the next token.
It keeps what a policy knew of pictures and words from being lost to the robot's few instructions. Source: RoboFlamingo
appendix B.1; weights, prompts and batch size from its released script.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from torch.nn import functional

from rfedge.data.image_text import ImageTextData, ImageTextExample, ImageTextKind, load_image
from rfedge.data.statistics import evenly_spaced
from rfedge.data.windows import SamplerState, WindowSampler
from rfedge.language.tokenizer import END_OF_CHUNK, IMAGE, InstructionTokenizer, PromptTokens
from rfedge.model import RoboFlamingo
from rfedge.train.batches.loader import Prefetch
from rfedge.train.compute_context import ComputeContext
from rfedge.train.config import TrainConfig
from rfedge.train.distributed import Processes

# N = pairs, T = text tokens, S = image size, D = decoder width

NO_LABEL: Final = -100

_LARGEST_EXPONENT: Final = 700.0  # of which a float64 holds the exponential
# Separates the order of each kind from the windows', which is sampled from the same seed.
_STREAMS: Final[dict[ImageTextKind, int]] = {"caption": 2, "vqa": 3}


@dataclass(frozen=True, slots=True)
class ImageTextBatch:
    """N pairs of one kind."""

    image: torch.Tensor  # uint8 (N, S, S, 3), already of the policy's size
    token_ids: torch.Tensor  # int64 (N, T), padded on the right
    labels: torch.Tensor  # int64 (N, T), the ids that are to be said, NO_LABEL on all others

    def to(self, device: torch.device) -> ImageTextBatch:
        return ImageTextBatch(self.image.to(device), self.token_ids.to(device), self.labels.to(device))


def prompt_parts(example: ImageTextExample, tokens: PromptTokens) -> tuple[str, str]:
    """Return what is given and what is to be said after it.

    >>> from pathlib import Path
    >>> asked = ImageTextExample("vqa", Path("a.png"), "a.png", "How many?", "two", Path("p.jsonl"), 0)
    >>> prompt_parts(asked, PromptTokens())
    ('<image>Question:How many? Short answer:', 'two<|endofchunk|><|endoftext|>')
    """
    start = f"{tokens.begin_of_text}{IMAGE}"
    end = f"{END_OF_CHUNK}{tokens.end_of_text}"
    if example.kind == "caption":
        return start, f"A photo of {example.text}{end}"
    return f"{start}Question:{example.question} Short answer:", f"{example.text}{end}"


def image_text_batch(
    examples: Sequence[ImageTextExample], tokenizer: InstructionTokenizer, image_size: int
) -> ImageTextBatch:
    """Load the images and encode the texts; a text longer than the tokenizer's rows is cut at its end."""
    rows = [_labelled_tokens(example, tokenizer) for example in examples]
    images = np.stack([load_image(example, image_size) for example in examples])
    return ImageTextBatch(torch.from_numpy(images), *pad_labelled(rows, tokenizer.pad_id))


def pad_labelled(rows: Sequence[list[tuple[int, int]]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels, int64 (N, T) each, of rows of (id, label), padded on the right."""
    length = max((len(row) for row in rows), default=0)
    padded = np.array([row + [(pad_id, NO_LABEL)] * (length - len(row)) for row in rows], dtype=np.int64)
    ids, labels = np.moveaxis(padded.reshape(len(rows), length, 2), -1, 0)
    return torch.from_numpy(np.ascontiguousarray(ids)), torch.from_numpy(np.ascontiguousarray(labels))


def _labelled_tokens(example: ImageTextExample, tokenizer: InstructionTokenizer) -> list[tuple[int, int]]:
    given, said = prompt_parts(example, tokenizer.tokens)
    # By the end of each token, in the whole text: a token on the border belongs to what is said.
    spans = tokenizer.spans(given + said)[: tokenizer.text_length]
    return [(token_id, token_id if end > len(given) else NO_LABEL) for token_id, end in spans]


def language_loss(policy: RoboFlamingo, batch: ImageTextBatch, num_tokens: int | None = None) -> tuple[torch.Tensor, int]:
    """Return the cross-entropy of the next token, nats, and how many tokens of the batch are labelled.

    The sum is divided by `num_tokens`, those of a larger batch, or without it by its own.
    """
    said = batch.labels[:, 1:] != NO_LABEL
    num_said = int(said.sum())
    num_tokens = num_said if num_tokens is None else num_tokens
    preprocess, backbone = policy.backbone.preprocess_static, policy.backbone
    image = batch.image.permute(0, 3, 1, 2).to(preprocess.scale.dtype) * preprocess.scale + preprocess.shift
    media = backbone.resampler(backbone.vision(image))
    # Padding is on the right and carries no label, and every token may read the one image: no mask is needed.
    hidden = backbone.decoder.tokens(policy.embed_text(batch.token_ids[:, :-1]), media, feature="final_norm")
    if num_tokens == 0:
        return 0.0 * hidden.sum(), 0
    logits = policy.logits(hidden[said][None])[0]  # only where they are compared: a vocabulary wide, they are large
    total = functional.cross_entropy(logits.float(), batch.labels[:, 1:][said], reduction="sum")
    return total / total.new_tensor(num_tokens), num_said


_Planned = tuple[ImageTextKind, ImageTextBatch, int]  # pairs, and the tokens to be said in the batch they are a part of


@dataclass(frozen=True, slots=True)
class PairPass:
    """One computation of the loss over pairs of one kind."""

    name: str  # of the loss in the metrics
    weight: float  # of the loss in what is learnt; where it is 0 nothing is, not even a gradient of zeros, which would decay
    loss: Callable[[], torch.Tensor]  # computes it, nats a token, unweighted; the passes of a batch add up to its mean


class CoTraining(Prefetch[tuple[list[_Planned], dict[str, SamplerState]]]):
    """Samples and loads image-text pairs beside the robot's windows; a context manager around the steps."""

    def __init__(
        self,
        data: ImageTextData,
        tokenizer: InstructionTokenizer,
        config: TrainConfig,
        device: torch.device,
        states: dict[str, SamplerState],
        processes: Processes | None = None,
    ) -> None:
        self._data = data
        self._tokenizer = tokenizer
        self._config = config
        self._device = device
        self._processes = processes or Processes()
        self._parts = self._processes.parts(config.image_text_batch_size, config.accumulate)
        self._samplers = {
            kind: WindowSampler(
                len(part),
                config.image_text_batch_size,
                int(np.random.SeedSequence([config.seed, _STREAMS[kind]]).generate_state(1)[0]),
                states.get(kind),
            )
            for kind, part in data.training.items()
        }
        super().__init__(self._sample)

    def _sample(self) -> Callable[[], tuple[list[_Planned], dict[str, SamplerState]]]:
        chosen = {kind: sampler.next_batch() for kind, sampler in self._samplers.items()}
        states: dict[str, SamplerState] = {kind: sampler.state for kind, sampler in self._samplers.items()}
        return lambda: ([planned for kind in chosen for planned in self._split(kind, chosen[kind])], states)

    def _split(self, kind: ImageTextKind, chosen: list[int]) -> list[_Planned]:
        examples = self._data.training[kind].examples(chosen)
        rows = [_labelled_tokens(example, self._tokenizer)[1:] for example in examples]
        num_tokens = sum(label != NO_LABEL for row in rows for _, label in row)
        return [(kind, self._load(examples[part]), num_tokens) for part in self._parts]

    def _load(self, examples: Sequence[ImageTextExample]) -> ImageTextBatch:
        return image_text_batch(examples, self._tokenizer, self._config.policy.vision.image_size)

    def passes(self, policy: RoboFlamingo) -> tuple[list[PairPass], dict[str, SamplerState]]:
        """Return this process's passes over the next batch of each kind, and the samplers' states after it."""
        planned, states = self.next()
        passes = []
        for kind, batch, num_tokens in planned:
            weight = self._config.caption_weight if kind == "caption" else self._config.vqa_weight
            compute = partial(self._loss, policy, batch, num_tokens)
            passes.append(PairPass(f"{kind}_loss", weight, compute))
        return passes, states

    def _loss(self, policy: RoboFlamingo, batch: ImageTextBatch, num_tokens: int) -> torch.Tensor:
        return language_loss(policy, batch.to(self._device), num_tokens)[0]

    @torch.no_grad()
    def measure(self, policy: RoboFlamingo, scope: ComputeContext | None = None) -> dict[str, float]:
        """Return loss and perplexity per token of the held-out pairs of each kind; all processes must call it together."""
        values = {}
        scope = scope or ComputeContext(self._device)
        size = self._config.image_text_batch_size
        for kind, part in self._data.held_out.items():
            chosen = evenly_spaced(len(part), self._config.validation_windows)
            total, num_tokens = 0.0, 0
            for numbers, counts in self._processes.shares(chosen, size):
                batch = self._load(part.examples(numbers)).to(self._device)
                loss, count = scope.run(partial(language_loss, policy, batch))
                if counts:
                    total += float(loss) * count  # batches weigh by what they hold, so their size does not matter
                    num_tokens += count
            sums = self._processes.sum({"loss": total, "num_tokens": num_tokens})
            total, num_tokens = sums["loss"], int(sums["num_tokens"])
            if num_tokens:
                values[f"validation_{kind}_loss"] = total / num_tokens
                values[f"validation_{kind}_perplexity"] = math.exp(min(total / num_tokens, _LARGEST_EXPONENT))
        return values
