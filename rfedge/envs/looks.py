"""The names of what draws a world and of what it looks like; its physics does not depend on them."""

from __future__ import annotations

from typing import Literal, cast, get_args

from rfedge.errors import ConfigError, did_you_mean, explain

__all__ = ["LOOKS_HELP", "RENDERER_HELP", "Looks", "Renderer", "check_looks"]

# "playtable": PlayTable's own shapes in CALVIN's colours; "random": in others, drawn anew for every episode; "calvin": the
# meshes and textures of an installed calvin_env.
Looks = Literal["playtable", "random", "calvin"]

# Of calvin_env: "egl", as CALVIN's data and results, on a GPU or in Mesa's software; "tiny", PyBullet's software renderer,
# whose images differ visibly.
Renderer = Literal["egl", "tiny"]

LOOKS_HELP = (
    "How PlayTable looks: playtable; random, drawn for every episode (wood, colours, light, cameras); or calvin, with the "
    "meshes and textures of an installed calvin_env."
)
RENDERER_HELP = "What draws calvin: egl (default), as CALVIN's published results, or tiny, twice as fast without a GPU."


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
