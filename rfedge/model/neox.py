"""Decoder block of GPT-NeoX: rotary positions, biases everywhere. Sources: GPT-NeoX-20B; RedPajama-INCITE-3B."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from rfedge.config import GPTNeoXConfig
from rfedge.model.rotary import rotate

# N = batch, T = text tokens, D = decoder width, H = heads


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
        q, k, v = self.qkv(self.ln_1(x_NTD)).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(rotate(q, rotary), rotate(k, rotary), v, attn_mask=bias_HTT)
        attended = self.out_proj(attended.transpose(1, 2).flatten(-2))
        x = x_NTD + attended
        hidden = self.mlp_up(self.ln_2(x_NTD if self.parallel_residual else x))
        return x + self.mlp_down(F.gelu(hidden))  # type: ignore[no-any-return]
