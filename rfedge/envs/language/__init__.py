"""How the 34 tasks are said: sentences to train with, and held-out ones to evaluate with.

`PARAPHRASES` are for training, and so are the thousands of sentences of `sample_grammar`. A policy is evaluated with
CALVIN's own instruction of each task (`rfedge.envs.tasks.INSTRUCTIONS`) or, to see how much hangs on its wording, with
`ENRICHED_INSTRUCTIONS`. No sentence of training is one of evaluation, and none means two tasks.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np

from rfedge.envs.language.grammar import ENRICHED_INSTRUCTIONS, GRAMMAR_WORDS, PARAPHRASES, sample_grammar
from rfedge.envs.tasks import INSTRUCTIONS, check_task
from rfedge.errors import ConfigError, one_of

__all__ = [
    "ENRICHED_INSTRUCTIONS",
    "GRAMMAR_WORDS",
    "LANGUAGES",
    "PARAPHRASES",
    "choose_instruction",
    "sample_enriched_instruction",
    "sample_grammar",
    "sample_instruction",
]

LANGUAGES: Final = ("evaluation", "enriched")


def sample_instruction(task: str, rng: np.random.Generator) -> str:
    """Return one of the task's training paraphrases; raises ConfigError for an unknown task."""
    return _choose(PARAPHRASES[check_task(task)], rng)


def sample_enriched_instruction(task: str, rng: np.random.Generator, left_out: Collection[str] = ()) -> str:
    """Return a held-out sentence of the task that is not in `left_out`; raises ConfigError where there is none."""
    sentences = tuple(sentence for sentence in ENRICHED_INSTRUCTIONS[check_task(task)] if sentence not in left_out)
    if not sentences:
        got = "none that the policy knows"
        remedy = "Leave the held-out instructions out."
        raise ConfigError(f"held-out instructions of {task!r}", got=got, expected="at least one", remedy=remedy)
    return _choose(sentences, rng)


def choose_instruction(task: str, language: str, rng: np.random.Generator, left_out: Collection[str] = ()) -> str:
    """Return the instruction with which `task` is evaluated: CALVIN's own ("evaluation"), or a held-out one ("enriched").

    Raises ConfigError where task or language is unknown, or `left_out` leaves no sentence.
    """
    one_of(LANGUAGES, language, "language", remedy="Choose one of them.")
    return INSTRUCTIONS[check_task(task)] if language == "evaluation" else sample_enriched_instruction(task, rng, left_out)


def _choose(sentences: tuple[str, ...], rng: np.random.Generator) -> str:
    return sentences[int(rng.integers(len(sentences)))]
