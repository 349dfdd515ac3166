"""One rollout: an instruction, carried out by a policy or an expert in the control loop, and its record.

What drives a robot and what measures success are this same rollout; simulated time needs no pace.
"""

from __future__ import annotations

from rfedge.runtimes.rollout.rollout import ExpertController, Goal, Rollout, RolloutRecord, StandingSimulator, roll_out

__all__ = ["ExpertController", "Goal", "Rollout", "RolloutRecord", "StandingSimulator", "roll_out"]
