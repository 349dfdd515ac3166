"""Decoder blocks of the language models: MPT, GPT-NeoX and LLaMA.

MosaicGPT (MPT-1B) also applies a LayerNorm to the whole q and k vectors, before the heads are split.
Sources: MPT-1B-RedPajama-200b and MPT-7B; GPT-NeoX-20B and RedPajama-INCITE-3B; LLaMA, section 2.2; RoFormer, section 3.2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from rfedge.config import GPTNeoXConfig, LlamaConfig, MPTConfig
from rfedge.model.attention import attend, split_heads

# N = batch, T = text tokens, D = decoder width, H = heads, E = elements of a head, R = elements that are turned (R <= E)


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
        q, k, v = (split_heads(part, self.heads) for part in (self.q_ln(q), self.k_ln(k), v))
        x = x_NTD + self.out_proj(attend(q, k, v, bias_HTT))
        return x + self.mlp_down(F.gelu(self.mlp_up(self.ln_2(x))))  # type: ignore[no-any-return]


class GPTNeoXBlock(nn.Module):
    """Attention and MLP, one after the other (RedPajama) or side by side on the same input (`parallel_residual`)."""

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.parallel_residual = config.parallel_residual
        self.ln_1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.qkv = nn.Linear(config.width, 3 * config.width)  # rows interleaved by head: q, k, v of head 0, then head 1
        self.out_proj = nn.Linear(config.width, config.width)
        self.ln_2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp_up = nn.Linear(config.width, config.mlp_width)
        self.mlp_down = nn.Linear(config.mlp_width, config.width)

    def forward(self, x_NTD: torch.Tensor, bias_HTT: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        q, k, v = split_heads(self.qkv(self.ln_1(x_NTD)), self.heads).chunk(3, dim=-1)
        attended = self.out_proj(attend(rotate(q, rotary), rotate(k, rotary), v, bias_HTT))
        x = x_NTD + attended
        hidden = self.mlp_up(self.ln_2(x_NTD if self.parallel_residual else x))
        return x + self.mlp_down(F.gelu(hidden))  # type: ignore[no-any-return]


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
        q = split_heads(self.q_proj(normed), self.heads)
        k, v = (split_heads(projection(normed), self.key_value_heads) for projection in (self.k_proj, self.v_proj))
        q, k = rotate(q, rotary), rotate(k, rotary)
        if self.key_value_heads != self.heads:
            k, v = (part.repeat_interleave(self.heads // self.key_value_heads, dim=1) for part in (k, v))
        x = x_NTD + self.out_proj(attend(q, k, v, bias_HTT))
        normed = self.ln_2(x)
        return x + self.mlp_down(F.silu(self.mlp_gate(normed)) * self.mlp_up(normed))  # type: ignore[no-any-return]


def rotary_table(size: int, length: int, base: float) -> torch.Tensor:
    """Return float32 (2, length, size): cosines and sines of position * base^(-2i / size), repeated for i + size/2."""
    frequencies = base ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies[None, :]
    angles = torch.cat([angles, angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x_NHTE: torch.Tensor, table_2TR: torch.Tensor) -> torch.Tensor:
    """Turn the first R elements of every head by their position; element i pairs with i + R/2."""
    cos, sin = table_2TR
    size = cos.shape[-1]
    turned, kept = x_NHTE[..., :size], x_NHTE[..., size:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned, kept], dim=-1)


def causal_bias(length: int) -> torch.Tensor:
    """Return float32 (1, length, length): 0 for keys j <= i, -inf for the future."""
    return torch.full((1, length, length), float("-inf")).triu(diagonal=1)
