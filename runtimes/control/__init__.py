"""The control loop: clock, modes, guard, and how it ends."""

from rfedge.runtimes.control.loop import ControlLoop

__all__ = ["ControlLoop"]
