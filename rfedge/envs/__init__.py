"""Simulated worlds a policy can act in, their tasks, their oracle and their scripted experts.

Importing this package needs numpy alone; a simulator is imported when its environment is made.
"""

from __future__ import annotations

from rfedge.envs.interface import BlockState, Environment, SceneInfo, make_environment
from rfedge.envs.oracle import task_solved
from rfedge.envs.tasks import INSTRUCTIONS, TASKS

__all__ = ["INSTRUCTIONS", "TASKS", "BlockState", "Environment", "SceneInfo", "make_environment", "task_solved"]
