"""Training: behaviour cloning on windows of demonstrations, resumable bit for bit."""

from __future__ import annotations

from rfedge.train.config import TrainConfig, train_config
from rfedge.train.loop import StepReport, TrainResult, train_policy

__all__ = ["StepReport", "TrainConfig", "TrainResult", "train_config", "train_policy"]
