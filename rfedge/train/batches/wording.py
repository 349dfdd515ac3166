"""Instructions sampled anew at every step, so that a policy learns a language and not its demonstrations' sentences.

Which grammar is the caller's: what tasks mean is known to an environment, not to the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from rfedge.config import DecoderConfig
from rfedge.data.calvin import Segment
from rfedge.errors import ConfigError
from rfedge.language.tokenizer import InstructionTokenizer

_OWN_SHARE: Final = 0.1
_ATTEMPTS: Final = 100
# Words of the table top that a tokenizer should know whole: spelt in letters, a request soon has more tokens than the policy
# reads. What they mean is learnt from demonstrations alone.
_TEXT: Final = """
the a an it its one this that them then and with of from to at by for out off on in into onto inside over under
up down top bottom left right side front back center towards away upright
red blue pink green yellow white black small big
block blocks cube object thing drawer door cabinet slider sliding shelf compartment handle table desk
switch lever button light lights lamp bulb lightbulb led toggle knob
take get grab grasp grasped grip hold held pick lift raise put place drop lay set store stack stacked unstack
remove collapse push pull press slide sweep move shift turn rotate spin flip open close shut use activate deactivate
go falls so make bring drag hand degrees clockwise please
"""
TABLETOP_WORDS: Final = tuple(_TEXT.split())


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


def learn_tokenizer(
    instructions: Iterable[str], decoder: DecoderConfig, grammar: Grammar | None, other_words: Iterable[str] = ()
) -> InstructionTokenizer:
    """Learn the tokenizer of a policy that starts from nothing; with `grammar`, whose words it knows, in lower case."""
    corpus = (*instructions, *TABLETOP_WORDS, *other_words, *(() if grammar is None else grammar.words))
    return InstructionTokenizer.from_corpus(
        corpus, vocab_size=decoder.vocab_size, text_length=decoder.text_length, lowercase=grammar is not None
    )
