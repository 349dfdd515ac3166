"""Sentences of each task, from sentences.json, where block tasks are written once for all colours and sides.

`PARAPHRASES` are ours to train with; `ENRICHED_INSTRUCTIONS` were kept out of training: the same tasks in the words of
somebody who never saw it. Each keeps what makes the task the one it is: colour, side, and where the block lies.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from rfedge.envs.tasks import COLOURS, TASKS


def _fill(families: Mapping[str, list[str]]) -> Mapping[str, tuple[str, ...]]:
    """Return task -> sentences, in the order of the task ids; `families` have {colour} and {side} in both."""
    table: dict[str, tuple[str, ...]] = {}
    for (name, sentences), colour, side in itertools.product(families.items(), COLOURS, ("left", "right")):
        words = {"colour": colour, "side": side}
        table[name.format(**words)] = tuple(sentence.format(**words) for sentence in sentences)
    return MappingProxyType({task: table[task] for task in TASKS})


_FAMILIES: Final = json.loads(Path(__file__).with_name("sentences.json").read_text())
PARAPHRASES: Final = _fill(_FAMILIES["paraphrases"])  # at least ten for each task
ENRICHED_INSTRUCTIONS: Final = _fill(_FAMILIES["enriched"])
