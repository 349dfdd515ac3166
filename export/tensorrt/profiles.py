"""Sizes of the axes that a graph leaves open, one optimisation profile for each size of the text.

Every profile is static (least, usual and greatest size are one), so that TensorRT fuses as if there were no other size;
profiles share the weights. A GPT head has one profile, from the first frame of an episode to the whole window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from rfedge.bundle.artifact import Bundle
from rfedge.contract import GraphContract
from rfedge.errors import ConfigError
from rfedge.language.instructions import InstructionTable

# input with an open axis -> its (least, usual, greatest) size
Profile = Mapping[str, tuple[int, int, int]]
_TEXT_AXIS: Final = "token"


def parse_text_lengths(text: str) -> tuple[int, ...]:
    """Read "8,16,32"; ConfigError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise _refused(repr(text), "whole numbers such as 8,16,32") from None


def check_text_lengths(lengths: Sequence[int], bundle: Bundle) -> tuple[int, ...]:
    """Return the lengths, without any the policy's longest alone; ConfigError where they do not rise or fit a sentence."""
    longest = bundle.policy.decoder.text_length
    if not lengths:
        return (longest,)
    rise = all(small < large for small, large in pairwise(lengths))
    if not rise or lengths[0] < 1 or lengths[-1] > longest:
        raise _refused(",".join(map(str, lengths)), f"rising numbers from 1 to {longest}, the policy's longest text")
    if bundle.has("instructions"):
        needed = InstructionTable(bundle.path("instructions"), longest).most_tokens
        if needed > lengths[-1]:
            raise _refused(",".join(map(str, lengths)), f"one of {needed} or more, which a sentence of this bundle needs")
    return tuple(lengths)


def plan_profiles(contract: GraphContract, text_lengths: Sequence[int]) -> tuple[Profile, ...]:
    """Return the profiles of one graph; none where all its sizes are fixed."""
    opened = [spec for spec in contract.inputs if -1 in spec.shape]
    if any(_TEXT_AXIS in spec.axes for spec in opened):
        return tuple({spec.name: (length,) * 3 for spec in opened} for length in text_lengths)
    # A size is open only up to the longest one, see TensorSpec.
    profile = {spec.name: (1, spec.longest or 1, spec.longest or 1) for spec in opened}
    return (profile,) if profile else ()


def text_lengths_of(contract: GraphContract, profiles: Sequence[Profile]) -> tuple[int, ...]:
    """Return the size of the text in each profile; empty for a graph that reads none."""
    text = next((spec.name for spec in contract.inputs if -1 in spec.shape and _TEXT_AXIS in spec.axes), None)
    return () if text is None else tuple(profile[text][-1] for profile in profiles)


def _refused(got: str, expected: str) -> ConfigError:
    return ConfigError("--text-lengths", got=got, expected=expected, remedy="Name each length once, shortest first.")
