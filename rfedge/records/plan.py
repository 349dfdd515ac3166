"""A check that all plans of measurements share."""

from __future__ import annotations

from collections.abc import Mapping

from rfedge.errors import ConfigError

__all__ = ["check_least"]


def check_least(least: int, values: Mapping[str, float], remedy: str | None = None) -> None:
    """Refuse the first number below `least`.

    Args:
        least: what each of them must be, or more.
        values: what messages call it -> number.
        remedy: None names the flag that is called like the value.

    Raises:
        ConfigError: one is smaller.
    """
    for name, value in values.items():
        if value < least:
            flag = name.replace("_", "-")
            raise ConfigError(name, got=value, expected=f"at least {least}", remedy=remedy or f"Raise --{flag}.")
