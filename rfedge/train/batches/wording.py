"""Instructions sampled anew at every step, so that a policy learns a language and not its demonstrations' sentences.

Which grammar is the caller's: what tasks mean is known to an environment, not to the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from rfedge.data.calvin import Segment
from rfedge.errors import ConfigError
from rfedge.language.tokenizer import InstructionTokenizer

_OWN_SHARE: Final = 0.1
_ATTEMPTS: Final = 100


@dataclass(frozen=True, slots=True)
class Grammar:
    """Ways to say tasks."""

    # (task id, generator) -> an instruction; raises ConfigError for a task that it does not know
    sample: Callable[[str, np.random.Generator], str]
    words: tuple[str, ...]  # that it may say, for a tokenizer's vocabulary


def check_grammar(instructions: str, grammar: Grammar | None, segments: Iterable[Segment]) -> Grammar | None:
    """Return the grammar that a run samples from, None for the demonstrations' own instructions."""
    if instructions == "data":
        return None
    if grammar is None:
        raise ConfigError(
            "grammar", got="none", expected="one with instructions 'grammar'", remedy="Pass it, or choose 'data'."
        )
    for task in sorted({segment.task for segment in segments}):
        grammar.sample(task, np.random.default_rng(0))
    return grammar


@dataclass(frozen=True, slots=True)
class Wording:
    """Samples instructions that a policy can read; some are the segment's own, whose words the grammar may not have."""

    grammar: Grammar
    tokenizer: InstructionTokenizer

    def sample(self, segment: Segment, rng: np.random.Generator, most_tokens: int | None = None) -> str:
        """Return an instruction of the segment's task of at most `most_tokens`, or of what fits into a prompt."""
        if rng.random() < _OWN_SHARE:
            return segment.instruction
        if most_tokens is None:
            most_tokens = self.tokenizer.text_length - self.tokenizer.num_prompt_tokens
        for _ in range(_ATTEMPTS):
            sentence = self.grammar.sample(segment.task, rng)
            if len(self.tokenizer.spans(sentence)) <= most_tokens:
                return sentence
        return segment.instruction

    def encode(self, segments: Sequence[Segment], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Sample an instruction for each of B segments: token_ids int64 (B, T) and text_mask bool (B, T)."""
        rows = [self.tokenizer.encode(self.sample(segment, rng)) for segment in segments]
        return torch.from_numpy(np.stack([ids for ids, _ in rows])), torch.from_numpy(np.stack([mask for _, mask in rows]))
