"""Conventions that data, policy and robot share, besides the units of an action: control rate and the camera geometry.

They are properties of a policy: its demonstrations have them, training and export hand them on, and whoever drives a robot
asks for them or is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rfedge.errors import ConfigError

__all__ = ["Conventions", "HasConventions", "conventions_of", "refuse_disagreement"]

# Of a rate: what float arithmetic and JSON may change, and no robot.
_SAME_RATE = 1e-3


@dataclass(frozen=True, slots=True)
class Conventions:
    """Of a policy, a dataset or a robot.

    Attributes:
        control_hz: actions per second; None where it does not matter or nobody says.
        resize: one of `rfedge.robot.camera.RESIZES`; None where the cameras are square already or nobody says.
    """

    control_hz: float | None = None
    resize: str | None = None


@runtime_checkable
class HasConventions(Protocol):
    """A policy, controller, dataset or robot that says what it was made for."""

    @property
    def conventions(self) -> Conventions:
        """Rate and camera geometry; None for what does not matter to it."""


def conventions_of(thing: object) -> Conventions:
    """Return what a policy, controller or robot says of itself; nothing where it says nothing."""
    return thing.conventions if isinstance(thing, HasConventions) else Conventions()


def refuse_disagreement(name: str, given: Conventions, owner: str, expected: Conventions) -> None:
    """Raise ConfigError where both say something and it is not the same; `owner` is what `name` has to agree with."""
    mine_hz, theirs_hz = given.control_hz, expected.control_hz
    if mine_hz is not None and theirs_hz is not None and abs(mine_hz - theirs_hz) > _SAME_RATE * theirs_hz:
        got = f"{mine_hz:g} Hz"
        remedy = "An action is the motion of one step: use that rate, or data resampled to the other (--fps)."
        raise ConfigError(f"control rate of {name}", got=got, expected=f"{theirs_hz:g} Hz, that of {owner}", remedy=remedy)
    if given.resize is not None and expected.resize is not None and given.resize != expected.resize:
        remedy = "Cut the pictures alike, or convert the data again with that --resize."
        raise ConfigError(
            f"camera geometry of {name}", got=given.resize, expected=f"{expected.resize}, that of {owner}", remedy=remedy
        )
