"""Training: behaviour cloning on windows of demonstrations, resumable bit for bit.

PyTorch is imported when the training itself is asked for: options can be checked without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rfedge.train.config import TrainConfig, train_config

if TYPE_CHECKING:
    from rfedge.train.loop import train_policy
    from rfedge.train.result import TrainingStep, TrainResult

__all__ = ["TrainConfig", "TrainResult", "TrainingStep", "train_config", "train_policy"]


def __getattr__(name: str) -> Any:
    """Import what needs PyTorch when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rfedge.train import loop, result

    return getattr(loop if name == "train_policy" else result, name)
