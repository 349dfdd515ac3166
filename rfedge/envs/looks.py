"""The names of what a world can look like; its physics does not depend on them."""

from __future__ import annotations

from typing import Literal, cast, get_args

from rfedge.errors import ConfigError, did_you_mean, explain

__all__ = ["LOOKS_HELP", "Looks", "check_looks"]

# "playtable": PlayTable's own shapes; "calvin": the meshes and textures of an installed calvin_env.
Looks = Literal["playtable", "calvin"]

LOOKS_HELP = "How PlayTable looks: playtable, or calvin, with the meshes and textures of an installed calvin_env."


def check_looks(looks: str) -> Looks:
    """Return `looks`.

    Raises:
        ConfigError: there are no such looks.
    """
    if looks not in (known := get_args(Looks)):
        raise ConfigError(
            explain("looks", got=repr(looks), expected=did_you_mean(looks, known), remedy="Choose one of these.")
        )
    return cast(Looks, looks)
