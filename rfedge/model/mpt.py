"""Decoder block of MPT: ALiBi instead of positions, no biases.

MosaicGPT (MPT-1B) also applies a LayerNorm to the whole q and k vectors, before the heads are split.
Sources: MPT-1B-RedPajama-200b; MPT-7B.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from rfedge.config import MPTConfig

# N = batch, T = text tokens, D = decoder width, H = heads


def alibi_bias(heads: int, length: int, bias_max: float) -> torch.Tensor:
    """Return float32 (heads, length, length): slope * (j - i) for keys j <= i, -inf for the future.

    Source: ALiBi, section 3; slopes 2^(-bias_max * h / heads), thinned out when `heads` is no power of two.
    """
    rounded = 2 ** math.ceil(math.log2(heads))
    slopes = 2.0 ** (-torch.arange(1, rounded + 1, dtype=torch.float32) * bias_max / rounded)
    if rounded != heads:
        slopes = torch.cat([slopes[1::2], slopes[::2]])[:heads]
    position = torch.arange(length, dtype=torch.float32)
    distance = position[None, :] - position[:, None]
    bias: torch.Tensor = (slopes[:, None, None] * distance).masked_fill(distance > 0, float("-inf"))
    return bias


class MPTBlock(nn.Module):
    """Pre-norm attention, then pre-norm MLP with GELU (erf)."""

    def __init__(self, config: MPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.ln_1 = nn.LayerNorm(config.width, bias=False)
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.q_ln = nn.LayerNorm(config.width, bias=False) if config.qk_norm else nn.Identity()
        self.k_ln = nn.LayerNorm(config.width, bias=False) if config.qk_norm else nn.Identity()
        self.out_proj = nn.Linear(config.width, config.width, bias=False)
        self.ln_2 = nn.LayerNorm(config.width, bias=False)
        self.mlp_up = nn.Linear(config.width, config.mlp_ratio * config.width, bias=False)
        self.mlp_down = nn.Linear(config.mlp_ratio * config.width, config.width, bias=False)

    def forward(self, x_NTD: torch.Tensor, bias_HTT: torch.Tensor, rotary: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = self.qkv(self.ln_1(x_NTD)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q_ln(q), self.k_ln(k), v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_HTT)
        x = x_NTD + self.out_proj(attended.transpose(1, 2).flatten(-2))
        return x + self.mlp_down(F.gelu(self.mlp_up(self.ln_2(x))))  # type: ignore[no-any-return]
