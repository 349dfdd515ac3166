"""Sentences that several tasks share but for a colour and a side, filled in for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rfedge.envs.tasks import COLOURS, TASKS

__all__ = ["Sentences", "fill"]

Sentences = Mapping[str, tuple[str, ...]]


def fill(families: Sentences, single: Sentences) -> Sentences:
    """Return task -> sentences, in the order of the task ids.

    Args:
        families: task name -> sentences, both with {colour} and {side} in them.
        single: all other tasks.
    """
    table = dict(single)
    for name, sentences in families.items():
        for colour in COLOURS:
            for side in ("left", "right"):
                filled = tuple(sentence.format(colour=colour, side=side) for sentence in sentences)
                table[name.format(colour=colour, side=side)] = filled
    return MappingProxyType({task: table[task] for task in TASKS})
