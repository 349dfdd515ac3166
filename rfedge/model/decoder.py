"""Language decoder with gated cross-attention, from embedded instruction and visual latents to one feature vector.

Before every n-th decoder block a gated cross-attention lets the text read both cameras. The media mask of Flamingo is
not computed for a policy: there is one image set and `<image>` is the first token, or only a begin token stands before it,
so every token may see every latent, but for that one (`tokens_before_image`).
Text with several images, as a language model reads it, gives one (`media_mask`). Source: RoboFlamingo section 4.2.

Blocks are those of MPT, GPT-NeoX and LLaMA; MosaicGPT (MPT-1B) also applies a LayerNorm to the whole q and k vectors, before
the heads are split. Sources: MPT-1B-RedPajama-200b and MPT-7B; GPT-NeoX-20B and RedPajama-INCITE-3B; LLaMA, section 2.2;
RoFormer, section 3.2.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from rfedge.config import DecoderConfig, Feature, GPTNeoXConfig, LlamaConfig, MPTConfig
from rfedge.model.attention import FeedForward, QueryAttention, attend, split_heads

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


# N = batch, T = text tokens, D = decoder width, R = latents of both cameras or of all images, V = vision width

# Below any feature, and still a number in fp16: padded tokens lose every maximum.
_PADDED_FEATURE = -65504.0


def masked_max_pool(x_NTD: torch.Tensor, mask_NT: torch.Tensor) -> torch.Tensor:
    """Maximum over the real tokens only, (N, D): padding to a static length must not change the feature."""
    return torch.where(mask_NT[:, :, None], x_NTD, _PADDED_FEATURE).amax(dim=1)


def masked_average_pool(x_NTD: torch.Tensor, mask_NT: torch.Tensor) -> torch.Tensor:
    """Mean over the real tokens only, (N, D)."""
    weight = mask_NT[:, :, None].to(x_NTD.dtype)
    return torch.where(mask_NT[:, :, None], x_NTD, 0.0).sum(dim=1) / weight.sum(dim=1)


class MediaMask(NamedTuple):
    """Mask of each text token: `bias` (N, 1, T, R) is added to the scores, `reads` (N, T, 1) scales what was read."""

    bias: torch.Tensor | None = None
    reads: torch.Tensor | None = None


def hidden_latents(seen_NR: torch.Tensor) -> MediaMask:
    """Hide from all tokens the latents where `seen_NR`, bool (N, R), is false; some must be true in every row."""
    return MediaMask(torch.where(seen_NR, 0.0, torch.finfo(torch.float32).min)[:, None, None])


def media_mask(images_named_NT: torch.Tensor, num_images: int, num_latents: int) -> MediaMask:
    """Let each token read the last image named up to it, as Flamingo does; the `<image>` token already reads its own.

    `images_named_NT` counts the `<image>` tokens up to and including each token. A token before every `<image>` reads
    nothing. One that follows more `<image>` tokens than there are images may read no latent, and the original's softmax then
    averages over all of them. Source: Flamingo 2.2, open_flamingo.
    """
    image = torch.arange(1, num_images + 1).repeat_interleave(num_latents)
    lowest = torch.finfo(torch.float32).min  # not -inf: a row of nothing else must still be a softmax
    bias = torch.where(images_named_NT[:, :, None] == image, 0.0, lowest)[:, None]
    return MediaMask(bias, (images_named_NT[:, :, None] > 0).to(torch.float32))


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

    def forward(self, x_NTD: torch.Tensor, media_NRV: torch.Tensor, mask: MediaMask | None = None) -> torch.Tensor:
        if mask is None:
            attended = self.attention(self.norm(x_NTD), media_NRV)
        else:
            attended = self.attention(self.norm(x_NTD), media_NRV, mask.bias, mask.reads)
        x = x_NTD + torch.tanh(self.attention_gate) * attended
        return x + torch.tanh(self.feed_forward_gate) * self.feed_forward(x)  # type: ignore[no-any-return]


def _decoder_block(config: DecoderConfig) -> nn.Module:
    if isinstance(config, MPTConfig):
        return MPTBlock(config)
    return GPTNeoXBlock(config) if isinstance(config, GPTNeoXConfig) else LlamaBlock(config)


def _final_norm(config: DecoderConfig) -> nn.Module:
    if isinstance(config, MPTConfig):
        return nn.LayerNorm(config.width, bias=False)
    if isinstance(config, GPTNeoXConfig):
        return nn.LayerNorm(config.width, eps=config.norm_eps)
    return RMSNorm(config.width, config.norm_eps)


class FusionLayer(nn.Module):
    """Gated cross-attention (where this layer has one), then the decoder block."""

    def __init__(self, config: DecoderConfig, media_width: int, *, index: int) -> None:
        super().__init__()
        has_cross_attention = (index + 1) % config.cross_attention_every == 0
        self.cross_attention = GatedCrossAttention(config, media_width) if has_cross_attention else None
        self.block = _decoder_block(config)

    def forward(
        self,
        x: torch.Tensor,
        media: torch.Tensor,
        bias: torch.Tensor,
        rotary: torch.Tensor | None = None,
        mask: MediaMask | None = None,
    ) -> torch.Tensor:
        if self.cross_attention is not None:
            x = self.cross_attention(x, media, mask)
        return self.block(x, bias, rotary)  # type: ignore[no-any-return]


class FusionDecoder(nn.Module):
    """Embedded text (N, T, D), its mask (N, T) and latents (N, R, V) -> feature (N, D).

    With `feature == "last_block_input"` the last layer and the final norm exist, because the released files hold them,
    but are never run: nothing of them reaches the action. So does the final norm with `last_block`.
    """

    first: int = 0  # block that `tokens` begins with; an exporter has run those before it
    bias: torch.Tensor
    rotary: torch.Tensor | None
    reads: torch.Tensor | None

    def __init__(self, config: DecoderConfig, media_width: int, pooling: Literal["max", "average"] = "max") -> None:
        super().__init__()
        self.feature: Feature = config.feature
        self.pool = masked_max_pool if pooling == "max" else masked_average_pool
        self.layers = nn.ModuleList(FusionLayer(config, media_width, index=index) for index in range(config.layers))
        self.ln_f = _final_norm(config)
        if isinstance(config, MPTConfig):
            bias, rotary = alibi_bias(config.heads, config.text_length, config.alibi_bias_max), None
        else:
            bias = causal_bias(config.text_length)
            rotary = rotary_table(config.rotary_size, config.text_length, config.rotary_base)
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("rotary", rotary, persistent=False)
        first = config.tokens_before_image
        reads = (torch.arange(config.text_length) >= first).float()[None, :, None] if first else None
        self.register_buffer("reads", reads, persistent=False)

    def forward(
        self, text_NTD: torch.Tensor, mask_NT: torch.Tensor, media_NRV: torch.Tensor, read: MediaMask | None = None
    ) -> torch.Tensor:
        if self.reads is not None:
            read = (read or MediaMask())._replace(reads=self.reads[:, : text_NTD.shape[1]])
        return self.pool(self.tokens(text_NTD, media_NRV, mask=read), mask_NT)

    def tokens(
        self,
        text_NTD: torch.Tensor,
        media_NRV: torch.Tensor,
        *,
        key_mask_NT: torch.Tensor | None = None,
        mask: MediaMask | None = None,
        feature: Feature | None = None,
    ) -> torch.Tensor:
        """Return what is pooled, (N, T, D), in the state `feature`, by default the configuration's.

        `key_mask_NT`, bool, true on real tokens, hides padding from the other tokens. Padding on the right is hidden from
        real tokens by causality alone, so only those who look at padded positions need it.
        """
        feature = feature or self.feature
        x = text_NTD
        length = x.shape[1]
        bias = self.bias[:, :length, :length]
        if key_mask_NT is not None:
            lowest = torch.finfo(bias.dtype).min  # not -inf: a query of padding alone must still be a softmax
            bias = bias.expand(x.shape[0], -1, -1, -1).masked_fill(~key_mask_NT[:, None, None, :], lowest)
        rotary = None if self.rotary is None else self.rotary[:, :length]
        live = len(self.layers) - (feature == "last_block_input")
        for layer in list(self.layers)[self.first : live]:
            x = layer(x, media_NRV, bias, rotary, mask)
        return self.ln_f(x) if feature == "final_norm" else x
