"""Base of plans: a check, and options of the command line that are declared on the fields that they fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rfedge.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Option:
    """Annotates a field of a plan that is an option of the command line (`rfedge.cli.options`); it is declared nowhere else.

    Type and default are the field's: a bool is a flag, a Literal a choice, a tuple an option that may be repeated.
    """

    help: str  # for `--help`
    flag: str | None = None  # None is the field's name with dashes
    panel: str | None = None  # of `--help`; the fields that follow are in it too, until another one begins
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()  # names that the field takes, where its type does not say them
    # text -> the field's value; of a tuple, of each item, unless there is a `text`
    parse: Callable[[str], Any] | None = None
    text: str | None = None  # the default as a user would type it, where `parse` makes the whole value of it
    commas: bool = False  # a tuple is one text, with commas between
    optional: bool = False  # the command line does without it although the plan does not
    argument: bool = False  # by its place, not by a name


class Uses:
    """Annotates a field that is a plan itself: the command takes these of its options, without any all of them.

    `helps` are further ones, each with what `--help` says here.
    """

    def __init__(self, *fields: str, panel: str | None = None, **helps: str) -> None:
        self.helps: dict[str, str | None] = {**dict.fromkeys(fields), **helps}
        self.panel = panel


def check_least(least: int, values: Mapping[str, float], remedy: str | None = None) -> None:
    """Raise ConfigError at the first of `values` (name -> number) below `least`; without a `remedy` it names the flag."""
    for name, value in values.items():
        if value < least:
            flag = name.replace("_", "-")
            raise ConfigError(name, got=value, expected=f"at least {least}", remedy=remedy or f"Raise --{flag}.")
