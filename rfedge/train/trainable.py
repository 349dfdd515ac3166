"""Which parameters learn, which of them decay, and which pre-trained ones are forgotten first.

"paper" trains resampler, gated cross-attention, token embedding and head; vision and decoder stay frozen. "freeze-emb"
leaves the embedding as it is, too, so that words the demonstrations never use keep their place beside those they use.
"freeze-vision" trains the decoder as well, for one that was pre-trained on a few thousand sentences alone. "full" trains
everything; presets without pre-trained weights need it. "head" fits a head to a fixed backbone. Sources: RoboFlamingo
sections 4.4 and 5.3, Fig. 3b, appendix B.3.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from rfedge.model import RoboFlamingo
from rfedge.model.bitsandbytes_weights import import_bitsandbytes
from rfedge.model.decoder import GatedCrossAttention
from rfedge.model.resampler import PerceiverResampler
from rfedge.train.config import TrainableScheme, TrainConfig

_GROUPS: Final[dict[TrainableScheme, tuple[str, ...]]] = {
    "paper": ("resampler", "cross_attention", "embedding", "head"),
    "freeze-emb": ("resampler", "cross_attention", "head"),
    "freeze-vision": ("resampler", "cross_attention", "decoder", "embedding", "head"),
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


def reinit_vl_layers(policy: RoboFlamingo, seed: int) -> None:
    """Re-initialise resamplers and gated cross-attention from `seed`: "No VL Pretrain" of RoboFlamingo's Fig. 3b."""
    config, backbone = policy.config, policy.backbone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for resampler in (backbone.resampler, backbone.resampler_gripper):
            if resampler is not None:
                resampler.load_state_dict(PerceiverResampler(config.resampler, config.vision.width).state_dict())
        for layer in backbone.decoder.layers:
            if isinstance(layer.cross_attention, GatedCrossAttention):  # not every layer has one
                fresh = GatedCrossAttention(config.decoder, config.vision.width)
                layer.cross_attention.load_state_dict(fresh.state_dict())


def optimizer_groups(
    trained: list[tuple[str, nn.Parameter]], *, weight_decay: float, head_rate: float
) -> list[dict[str, Any]]:
    """Return AdamW's groups: only matrices of the gated cross-attention decay, the head has `head_rate`."""
    head = [parameter for name, parameter in trained if _is_head(name)]
    decayed = [parameter for name, parameter in trained if _decays(name, parameter)]
    others = [parameter for name, parameter in trained if not _is_head(name) and not _decays(name, parameter)]
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "rate_factor": 1.0, "is_head": False},
        {"params": others, "weight_decay": 0.0, "rate_factor": 1.0, "is_head": False},
        {"params": head, "weight_decay": 0.0, "rate_factor": head_rate, "is_head": True},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(config: TrainConfig, trained: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """Return AdamW in 32 bits, or with its moments in 8 (Dettmers et al., 8-bit Optimizers via Block-wise Quantization)."""
    groups = optimizer_groups(trained, weight_decay=config.weight_decay, head_rate=config.head_rate)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else import_bitsandbytes().optim.AdamW8bit
    optimizer: torch.optim.Optimizer = kind(groups, lr=config.learning_rate)
    return optimizer


def _is_head(name: str) -> bool:
    return name.startswith("head.")


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return "cross_attention" in name.split(".") and parameter.ndim >= 2
