"""The RoboFlamingo family in PyTorch."""

from __future__ import annotations

from rfedge.model.checkpoint import Checkpoint, checkpoint_sha256, load_checkpoint, save_checkpoint
from rfedge.model.policy import RoboFlamingo, build_policy, frame_history

__all__ = [
    "Checkpoint",
    "RoboFlamingo",
    "build_policy",
    "checkpoint_sha256",
    "frame_history",
    "load_checkpoint",
    "save_checkpoint",
]
