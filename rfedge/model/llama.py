"""Decoder block of LLaMA: rotary positions, RMSNorm, gated SiLU MLP, no biases. Source: LLaMA, section 2.2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from rfedge.config import LlamaConfig
from rfedge.model.rotary import rotate

# N = batch, T = text tokens, D = decoder width, H = heads


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), times a weight: LayerNorm without the mean and without a bias."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


class LlamaBlock(nn.Module):
    """Pre-norm attention, then pre-norm MLP; each of `key_value_heads` serves a group of query heads."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.heads, self.key_value_heads = config.heads, config.key_value_heads
        key_value_width = config.width // config.heads * config.key_value_heads
        self.ln_1 = RMSNorm(config.width, config.norm_eps)
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, key_value_width, bias=False)
        self.v_proj = nn.Linear(config.width, key_value_width, bias=False)
        self.out_proj = nn.Linear(config.width, config.width, bias=False)
        self.ln_2 = RMSNorm(config.width, config.norm_eps)
        self.mlp_gate = nn.Linear(config.width, config.mlp_width, bias=False)
        self.mlp_up = nn.Linear(config.width, config.mlp_width, bias=False)
        self.mlp_down = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x_NTD: torch.Tensor, bias_HTT: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        normed = self.ln_1(x_NTD)
        q = self.q_proj(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (
            projection(normed).unflatten(-1, (self.key_value_heads, -1)).transpose(1, 2)
            for projection in (self.k_proj, self.v_proj)
        )
        q, k = rotate(q, rotary), rotate(k, rotary)
        if self.key_value_heads != self.heads:
            k, v = (part.repeat_interleave(self.heads // self.key_value_heads, dim=1) for part in (k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_HTT)
        x = x_NTD + self.out_proj(attended.transpose(1, 2).flatten(-2))
        normed = self.ln_2(x)
        return x + self.mlp_down(F.silu(self.mlp_gate(normed)) * self.mlp_up(normed))  # type: ignore[no-any-return]
