"""Errors a user can cause, each with one sentence shape: subject, got, expected, what to do.

Everything a user can get wrong ends in a subclass of `RfedgeError`; the command line prints its text on one line and
exits with 2, or with 1 where a measured number missed its threshold. Any other exception is a bug of ours and keeps its
traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Final, TypeVar

__all__ = [
    "ArtifactError",
    "BackendUnavailableError",
    "ConfigError",
    "ContractError",
    "DatasetError",
    "ExportError",
    "GateError",
    "PolicyUnavailableError",
    "RfedgeError",
    "did_you_mean",
    "explain",
    "first_line",
    "one_of",
]

_Name = TypeVar("_Name", bound=str)


class RfedgeError(Exception):
    """Base of every error that a user can cause and mend; its text is `explain` of its parts, or the subject alone.

    >>> ConfigError("execute_steps", got=9, expected="1 to 4 (chunk_size)", remedy="Lower --execute-steps.").got
    '9'
    """

    def __init__(self, subject: str, *, got: object = None, expected: object = None, remedy: str = "") -> None:
        has_parts = (got, expected, remedy) != (None, None, "")
        super().__init__(explain(subject, got=got, expected=expected, remedy=remedy) if has_parts else subject)
        self.subject, self.remedy = subject, remedy
        self.got = "" if got is None else str(got)
        self.expected = "" if expected is None else str(expected)


class ContractError(RfedgeError):
    """An observation, action, state or tensor does not have the shape, dtype or range that its contract names."""


class ConfigError(RfedgeError):
    """A preset, precision, mode or option is unknown, or two options contradict each other."""


class ArtifactError(RfedgeError):
    """A checkpoint or bundle is missing, incomplete, altered or of another version."""


class DatasetError(RfedgeError):
    """Demonstrations are missing, damaged or of another robot."""


class BackendUnavailableError(RfedgeError):
    """A library, renderer or device that was asked for is not on this machine."""


class ExportError(RfedgeError):
    """The graph could not be made from the checkpoint."""


class GateError(RfedgeError):
    """A measured number missed its threshold; the text holds both."""


class PolicyUnavailableError(RfedgeError):
    """The policy gave no action in time: its server is gone, busy or slow. A loop holds or stops; the next call may act."""


_SHORTEST_PART: Final = 3  # letters from which a part of a name means that name
_MOST_HINTS: Final = 10


def explain(subject: str, *, got: object, expected: object, remedy: str) -> str:
    """Build the one error sentence that every `RfedgeError` uses.

    >>> explain("execute_steps", got=9, expected="1 to 4 (chunk_size)", remedy="Lower --execute-steps.")
    'execute_steps: got 9, expected 1 to 4 (chunk_size). Lower --execute-steps.'
    """
    return f"{subject}: got {got}, expected {expected}. {remedy}"


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return the choices as text, with those that hold `name`, or else the nearest one, when there is one.

    >>> did_you_mean("int9", ["fp32", "int8"])
    "one of fp32, int8 (did you mean 'int8'?)"
    >>> did_you_mean("int4", ["int8", "int4-weight"])
    "one of int8, int4-weight (did you mean 'int4-weight'?)"
    """
    choices = list(choices)
    listed = f"one of {', '.join(choices)}"
    near = [choice for choice in choices if len(name) >= _SHORTEST_PART and name in choice]
    if not 0 < len(near) <= _MOST_HINTS:
        near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"{listed} (did you mean {' or '.join(map(repr, near))}?)" if near else listed


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, or its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def one_of(choices: Collection[_Name], name: str, subject: str, *, remedy: str = "Choose one of these names.") -> _Name:
    """Return `name` as one of `choices`.

    Raises:
        ConfigError: it is none of them; the text has them all, and the nearest one.
    """
    for choice in choices:
        if choice == name:
            return choice
    raise ConfigError(subject, got=repr(name), expected=did_you_mean(name, choices), remedy=remedy)
