"""Names of renderers and of looks of a world; its physics does not depend on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, cast, get_args, runtime_checkable

from rfedge.errors import one_of

# "playtable": PlayTable's own shapes in CALVIN's colours; "random": in others, sampled for every episode; "calvin": the
# meshes and textures of an installed calvin_env.
Looks = Literal["playtable", "random", "calvin"]

# Of calvin_env: "egl", as CALVIN's data and results, on a GPU or in Mesa's software; "tiny", PyBullet's software renderer,
# whose images differ visibly.
Renderer = Literal["egl", "tiny"]

LOOKS_HELP = (
    "How PlayTable looks: playtable; random, sampled for every episode (wood, colours, light, cameras); or calvin, with the "
    "meshes and textures of an installed calvin_env."
)
RENDERER_HELP = "Renderer of calvin: egl (default), as CALVIN's published results, or tiny, twice as fast without a GPU."


@runtime_checkable
class _Redressable(Protocol):
    """A world whose looks may differ between episodes."""

    def redress(self, seed: Sequence[int]) -> None: ...


def redress(environment: object, seed: Sequence[int]) -> None:
    """Sample the looks of an episode where they are random; `seed` decides them."""
    if isinstance(environment, _Redressable):
        environment.redress(seed)


def check_looks(looks: str) -> Looks:
    """Return `looks`; raises ConfigError where there are no such looks."""
    return cast(Looks, one_of(get_args(Looks), looks, "looks", remedy="Choose one of these."))
