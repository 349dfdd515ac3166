"""Limits of a run: its steps, and what happens when an action is not ready in time. The command line shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from rfedge.errors import ConfigError, one_of
from rfedge.records.plan import Option

__all__ = ["LATE_ACTIONS", "MAX_STEPS", "LatePolicy"]

MAX_STEPS: Final = 360  # control steps for one instruction, as in CALVIN's evaluation


# send: the late action still goes out. hold: zero motion with the gripper kept. repeat: the last action once more, while
# the instruction is the same. A policy that has no answer at all ("unavailable") always holds.
LATE_ACTIONS: Final = ("send", "hold", "repeat")


@dataclass(frozen=True, slots=True)
class LatePolicy:
    """Actions on a missed step, and when the misses end a run.

    A step is missed when its action is ready only after the next step should have begun, or when an overlapped chunk is
    used up before the next one has arrived. Where nothing is there to be sent, "send" holds.
    """

    action: Annotated[
        str,
        Option(
            "Action of a missed step: send (its late action), hold (zero motion) or repeat (the last one).",
            flag="--late",
            choices=LATE_ACTIONS,
        ),
    ] = "send"
    stop_after_misses: Annotated[
        int | None, Option("Stop the robot and end with status 1 after this many consecutive misses.")
    ] = None
    max_repeats: Annotated[int, Option("With --late repeat: hold after this many consecutive misses.")] = 5

    def __post_init__(self) -> None:
        one_of(LATE_ACTIONS, self.action, "late")
        if self.stop_after_misses is not None and self.stop_after_misses < 1:
            remedy = "Leave --stop-after-misses out to go on for ever."
            raise ConfigError("stop_after_misses", got=self.stop_after_misses, expected="1 or more", remedy=remedy)
        if self.max_repeats < 1:
            remedy = "Choose --late hold for none."
            raise ConfigError("max_repeats", got=self.max_repeats, expected="1 or more", remedy=remedy)
