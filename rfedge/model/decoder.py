"""Language decoder with gated cross-attention, from embedded instruction and visual latents to one feature vector.

The decoder blocks are MosaicGPT's (MPT-1B): pre-norm, no biases, ALiBi instead of positions, LayerNorm on whole q and
k vectors. Before every n-th block a gated cross-attention lets the text read both cameras. The media mask of Flamingo
is left out: `<image>` is the first token and there is one image set, so every token may see every latent.
Sources: RoboFlamingo section 4.2; MPT-1B-RedPajama-200b.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from rfedge.config import DecoderConfig
from rfedge.model.attention import FeedForward, QueryAttention

__all__ = ["FusionDecoder", "alibi_bias", "masked_max_pool"]

# N = batch, T = text tokens, D = decoder width, R = latents of both cameras, V = vision width

# Below any feature, and still a number in fp16: padded tokens lose every maximum.
_PADDED_FEATURE = -65504.0


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


def masked_max_pool(x_NTD: torch.Tensor, mask_NT: torch.Tensor) -> torch.Tensor:
    """Maximum over the real tokens only, (N, D): padding to a static length must not change the feature."""
    return torch.where(mask_NT[:, :, None], x_NTD, _PADDED_FEATURE).amax(dim=1)


class GatedCrossAttention(nn.Module):
    """x += tanh(gate) * attention(LN(x), media), then the same with a feed-forward."""

    def __init__(self, config: DecoderConfig, media_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.attention = QueryAttention(
            config.width, media_width, config.cross_attention_heads, config.cross_attention_head_size
        )
        self.attention_gate = nn.Parameter(torch.full((1,), config.gate_init))
        self.feed_forward = FeedForward(config.width, config.mlp_ratio)
        self.feed_forward_gate = nn.Parameter(torch.full((1,), config.gate_init))

    def forward(self, x_NTD: torch.Tensor, media_NRV: torch.Tensor) -> torch.Tensor:
        x = x_NTD + torch.tanh(self.attention_gate) * self.attention(self.norm(x_NTD), media_NRV)
        return x + torch.tanh(self.feed_forward_gate) * self.feed_forward(x)  # type: ignore[no-any-return]


class DecoderBlock(nn.Module):
    """MosaicGPT block."""

    def __init__(self, config: DecoderConfig) -> None:
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

    def forward(self, x_NTD: torch.Tensor, bias_HTT: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.ln_1(x_NTD)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q_ln(q), self.k_ln(k), v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_HTT)
        x = x_NTD + self.out_proj(attended.transpose(1, 2).flatten(-2))
        return x + self.mlp_down(F.gelu(self.mlp_up(self.ln_2(x))))  # type: ignore[no-any-return]


class FusionLayer(nn.Module):
    """Gated cross-attention (where this layer has one), then the decoder block."""

    def __init__(self, config: DecoderConfig, media_width: int, *, index: int) -> None:
        super().__init__()
        has_cross_attention = (index + 1) % config.cross_attention_every == 0
        self.cross_attention = GatedCrossAttention(config, media_width) if has_cross_attention else None
        self.block = DecoderBlock(config)

    def forward(self, x: torch.Tensor, media: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if self.cross_attention is not None:
            x = self.cross_attention(x, media)
        return self.block(x, bias)  # type: ignore[no-any-return]


class FusionDecoder(nn.Module):
    """Embedded text (N, T, D), its mask (N, T) and latents (N, R, V) -> feature (N, D).

    With `feature == "last_block_input"` the last layer and the final norm exist, because the released files hold them,
    but are never run: nothing of them reaches the action.
    """

    bias: torch.Tensor

    def __init__(self, config: DecoderConfig, media_width: int) -> None:
        super().__init__()
        self.feature = config.feature
        self.layers = nn.ModuleList(FusionLayer(config, media_width, index=index) for index in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width, bias=False)
        self.register_buffer("bias", alibi_bias(config.heads, config.text_length, config.alibi_bias_max), persistent=False)

    def forward(self, text_NTD: torch.Tensor, mask_NT: torch.Tensor, media_NRV: torch.Tensor) -> torch.Tensor:
        x = text_NTD
        live = len(self.layers) - (self.feature == "last_block_input")
        bias = self.bias[:, : x.shape[1], : x.shape[1]]
        for layer in list(self.layers)[:live]:
            x = layer(x, media_NRV, bias)
        if self.feature == "final_norm":
            x = self.ln_f(x)
        return masked_max_pool(x, mask_NT)
