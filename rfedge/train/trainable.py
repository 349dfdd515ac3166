"""Which parameters learn, and which of them decay.

"paper" trains resampler, gated cross-attention, token embedding and head; vision and decoder stay frozen. "full" is for
presets without pre-trained weights; "head" fits a new head to a fixed backbone. Source: RoboFlamingo section 4.4.
"""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from rfedge.model import RoboFlamingo
from rfedge.train.config import TrainableScheme

__all__ = ["freeze", "optimizer_groups"]

_GROUPS: Final[dict[TrainableScheme, tuple[str, ...]]] = {
    "paper": ("resampler", "cross_attention", "embedding", "head"),
    "full": ("vision", "resampler", "cross_attention", "decoder", "embedding", "head"),
    "head": ("head",),
}


def freeze(policy: RoboFlamingo, scheme: TrainableScheme) -> list[tuple[str, nn.Parameter]]:
    """Set `requires_grad` on every parameter of `policy` and return those that learn, by name."""
    trained: list[tuple[str, nn.Parameter]] = []
    for group, parameters in policy.parameter_groups().items():
        for name, parameter in parameters:
            learns = group in _GROUPS[scheme]
            parameter.requires_grad_(learns)
            if learns:
                trained.append((name, parameter))
    return sorted(trained)


def optimizer_groups(
    trained: list[tuple[str, nn.Parameter]], *, weight_decay: float, head_rate: float
) -> list[dict[str, Any]]:
    """Return AdamW's groups, each with its `rate_factor` of the learning rate.

    Only the matrices of the gated cross-attention decay, not its gates, norms and biases; the head learns at
    `head_rate` times the rate of everything before it.
    """
    head = [parameter for name, parameter in trained if _is_head(name)]
    decayed = [parameter for name, parameter in trained if _decays(name, parameter)]
    others = [parameter for name, parameter in trained if not _is_head(name) and not _decays(name, parameter)]
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "rate_factor": 1.0, "is_head": False},
        {"params": others, "weight_decay": 0.0, "rate_factor": 1.0, "is_head": False},
        {"params": head, "weight_decay": 0.0, "rate_factor": head_rate, "is_head": True},
    ]
    return [group for group in groups if group["params"]]


def _is_head(name: str) -> bool:
    return name.startswith("head.")


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return "cross_attention" in name.split(".") and parameter.ndim >= 2
