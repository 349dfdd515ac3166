"""What the loop does when an action is not ready in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rfedge.errors import ConfigError, did_you_mean

__all__ = ["LATE_ACTIONS", "LatePolicy"]

# send: the late action still goes out. hold: zero motion with the gripper kept. repeat: the last action once more, while
# the instruction is the same. A policy that has no answer at all ("unavailable") always holds.
LATE_ACTIONS: Final = ("send", "hold", "repeat")


@dataclass(frozen=True, slots=True)
class LatePolicy:
    """What goes to the robot on a missed step, and when it is enough.

    A step is missed when its action is ready only after the next step should have begun, or when an overlapped chunk is
    used up before the next one has arrived.

    Attributes:
        action: one of `LATE_ACTIONS`. Where nothing is there to be sent, "send" holds.
        stop_after_misses: consecutive misses after which the run ends with zero motion; None never ends it.
        max_repeats: consecutive steps that "repeat" repeats; then it holds.
    """

    action: str = "send"
    stop_after_misses: int | None = None
    max_repeats: int = 5

    def __post_init__(self) -> None:
        """Refuse unknown names.

        Raises:
            ConfigError: `action` is unknown, or `stop_after_misses` or `max_repeats` is below 1.
        """
        if self.action not in LATE_ACTIONS:
            raise ConfigError(
                "late",
                got=repr(self.action),
                expected=did_you_mean(self.action, LATE_ACTIONS),
                remedy="Choose one of these names.",
            )
        if self.stop_after_misses is not None and self.stop_after_misses < 1:
            raise ConfigError(
                "stop_after_misses",
                got=self.stop_after_misses,
                expected="1 or more",
                remedy="Leave --stop-after-misses out to go on for ever.",
            )
        if self.max_repeats < 1:
            raise ConfigError(
                "max_repeats", got=self.max_repeats, expected="1 or more", remedy="Choose --late hold for none."
            )
