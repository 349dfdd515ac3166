"""Attention of learned or textual queries over visual tokens: the core of the resampler and of the fusion layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(N, tokens, D) -> (N, heads, tokens, D / heads)."""
    split: torch.Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Attention of split heads, which are put together again: (N, tokens of q, D); `bias` is added to the scores."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(-2)


class QueryAttention(nn.Module):
    """Multi-head attention without biases: queries (N, Q, query_width) read a context (N, C, context_width)."""

    def __init__(self, query_width: int, context_width: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(query_width, heads * head_size, bias=False)
        self.to_kv = nn.Linear(context_width, 2 * heads * head_size, bias=False)
        self.to_out = nn.Linear(heads * head_size, query_width, bias=False)
        # At first every query averages over all tokens, which shrinks what an image says; this scale makes up for it.
        for layer in (self.to_q, self.to_kv, self.to_out):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(
        self, query: torch.Tensor, context: torch.Tensor, bias: torch.Tensor | None = None, scale: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attend; `bias` (N, 1, Q, C) is added to the scores, `scale` (N, Q, 1) multiplies what each query has read."""
        q, k, v = (split_heads(part, self.heads) for part in (self.to_q(query), *self.to_kv(context).chunk(2, dim=-1)))
        attended = attend(q, k, v, bias)
        if scale is not None:
            attended = attended * scale
        return self.to_out(attended)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """LayerNorm, widen, GELU (erf), narrow; no biases in the projections."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, ratio * width, bias=False)
        self.down = nn.Linear(ratio * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(self.norm(x))))  # type: ignore[no-any-return]
