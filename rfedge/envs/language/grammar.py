"""Sentences of each task, and a grammar of training instructions: thousands of ways to say each task.

`PARAPHRASES` are ours to train with; `ENRICHED_INSTRUCTIONS` were kept out of training: the same tasks in the words of
somebody who never saw it. Each keeps what makes the task the one it is: colour, side, and where the block lies. In
sentences.json block tasks are written once for all colours and sides.

A policy that reads a handful of sentences per task knows these sentences and no language. The rules (grammar.txt) combine
verbs, names of things, directions, order of words and politeness. No sentence that a policy is evaluated with is ever
returned, nor one that has the same content words as a held-out one.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from rfedge.envs.tasks import COLOURS, INSTRUCTIONS, KINDS, TASKS, check_task


def _fill(families: Mapping[str, list[str]]) -> Mapping[str, tuple[str, ...]]:
    """Return task -> sentences, in the order of the task ids; `families` have {colour} and {side} in both."""
    table: dict[str, tuple[str, ...]] = {}
    for (name, sentences), colour, side in itertools.product(families.items(), COLOURS, ("left", "right")):
        words = {"colour": colour, "side": side}
        table[name.format(**words)] = tuple(sentence.format(**words) for sentence in sentences)
    return MappingProxyType({task: table[task] for task in TASKS})


_SENTENCES: Final = json.loads(Path(__file__).with_name("sentences.json").read_text())
PARAPHRASES: Final = _fill(_SENTENCES["paraphrases"])  # at least ten for each task
ENRICHED_INSTRUCTIONS: Final = _fill(_SENTENCES["enriched"])


_WISH_SHARE: Final = 0.2  # of the grammar's own
_SAID_SHARE: Final = 0.1
_CAPITAL_SHARE: Final = 0.2
_STOP_SHARE: Final = 0.15
_SYMBOL: Final = re.compile(r"\{(\w+)\}")
_SIDES: Final = ("left", "right")
# Words that do not make one sentence another.
_EMPTY_WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        """a an the it its that this which is are be so and then now next please kindly could can would will you your i me my
        we us want need should must has have had like to do for just let robot s d ll""",
    )
)


def _read_rules() -> Mapping[str, tuple[str, ...]]:
    text = files("rfedge.envs.language").joinpath("grammar.txt").read_text(encoding="utf-8").replace("\n  |", " |")
    rules = (line.partition(" = ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: tuple(part.strip() for part in alternatives.split("|")) for name, _, alternatives in rules}


# symbol -> alternatives
_RULES: Final = MappingProxyType(_read_rules())
# Every word that the grammar may say, for a tokenizer's vocabulary.
GRAMMAR_WORDS: Final = tuple(
    sorted(
        {word for parts in _RULES.values() for part in parts for word in re.findall(r"[a-z]+", _SYMBOL.sub(" ", part))}
        | {*COLOURS, *_SIDES, *(f"{side}{end}" for side in _SIDES for end in ("ward", "wards"))}
    )
)


def sample_grammar(task: str, rng: np.random.Generator) -> str:
    """Return one of the many ways to say `task`, decided by `rng` alone; raises ConfigError for an unknown task."""
    family, bound = _FAMILIES[check_task(task)]
    while True:
        sentence = _sample(family, bound, rng)
        words = _content_words(sentence)
        if words != _EVALUATED[task] and frozenset(words) not in _HELD_OUT[task]:
            break
    if rng.random() < _CAPITAL_SHARE:
        sentence = sentence[0].upper() + sentence[1:]
    return sentence + ".!"[int(rng.random() < 0.2)] if rng.random() < _STOP_SHARE else sentence


def _sample(family: str, bound: Mapping[str, str], rng: np.random.Generator) -> str:
    """Expand a command or a wish of `family`; `bound` gives symbols that are not sampled."""
    if rng.random() < _WISH_SHARE:
        ends = [end for end in ("", "_2") if f"obj_{family}{end}" in _RULES]
        end = ends[int(rng.integers(len(ends)))]
        start, bound = "wish", {**bound, "obj": f"{{obj_{family}{end}}}", "past": f"{{past_{family}{end}}}"}
    elif rng.random() < _SAID_SHARE:
        start = f"say_{family}"
    else:
        start, bound = "frame", {**bound, "imp": f"{{imp_{family}}}"}

    def expand(text: str) -> str:
        return _SYMBOL.sub(lambda match: expand(bound.get(match[1]) or choose(_RULES[match[1]])), text)

    def choose(alternatives: tuple[str, ...]) -> str:
        return alternatives[int(rng.integers(len(alternatives)))]

    return expand(f"{{{start}}}")


def _content_words(sentence: str) -> tuple[str, ...]:
    words = re.findall(r"[a-z]+", re.sub(r"(left|right)wards?", r"\1", sentence.lower()))
    return tuple(word for word in words if word not in _EMPTY_WORDS)


def _family(task: str) -> tuple[str, Mapping[str, str]]:
    """Return the symbols' name of a task, and those that it does not leave to the grammar."""
    kind, words = KINDS[task]
    names = {"lift": f"lift_{words.get('place')}", "turn": task}
    return names.get(kind, kind), {"colour": words.get("block", "").removeprefix("block_"), "side": words.get("side", "")}


_FAMILIES: Final = {task: _family(task) for task in TASKS}
_EVALUATED: Final = {task: _content_words(sentence) for task, sentence in INSTRUCTIONS.items()}
_HELD_OUT: Final = {
    task: {frozenset(_content_words(sentence)) for sentence in ENRICHED_INSTRUCTIONS[task]} for task in TASKS
}
