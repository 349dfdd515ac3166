"""The RoboFlamingo family in PyTorch."""

from __future__ import annotations

from rfedge.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from rfedge.model.policy import RoboFlamingo, build_policy

__all__ = ["Checkpoint", "RoboFlamingo", "build_policy", "load_checkpoint", "save_checkpoint"]
