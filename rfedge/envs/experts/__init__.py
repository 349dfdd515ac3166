"""Scripted experts: closed-loop policies that see robot_obs and scene_obs and answer with the public 7-D action."""

from __future__ import annotations

from rfedge.envs.experts.engine import Expert
from rfedge.envs.experts.preparation import EXPERT_TASKS, make_expert, prepare, prepare_start

__all__ = ["EXPERT_TASKS", "Expert", "make_expert", "prepare", "prepare_start"]
