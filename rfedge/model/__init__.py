"""The RoboFlamingo family in PyTorch."""

from __future__ import annotations

from rfedge.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from rfedge.model.policy import RoboFlamingo, build_policy, frame_history

__all__ = ["Checkpoint", "RoboFlamingo", "build_policy", "frame_history", "load_checkpoint", "save_checkpoint"]
