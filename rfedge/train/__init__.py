"""Training: behaviour cloning on windows of demonstrations, resumable bit for bit."""

from __future__ import annotations

from rfedge.train.config import TrainConfig, train_config
from rfedge.train.loop import train_policy
from rfedge.train.result import StepReport, TrainResult

__all__ = ["StepReport", "TrainConfig", "TrainResult", "train_config", "train_policy"]
