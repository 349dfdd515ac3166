"""Language decoder with gated cross-attention, from embedded instruction and visual latents to one feature vector.

Before every n-th decoder block a gated cross-attention lets the text read both cameras. The media mask of Flamingo is
not computed for a policy: there is one image set and `<image>` is the first token, or only a begin token stands before it,
so every token may see every latent, but for that one (`tokens_before_image`).
Text with several images, as a language model reads it, gives one (`media_mask`). Source: RoboFlamingo section 4.2.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import nn

from rfedge.config import DecoderConfig, Feature, GPTNeoXConfig, MPTConfig
from rfedge.model.attention import FeedForward, QueryAttention
from rfedge.model.decoder_blocks import GPTNeoXBlock, LlamaBlock, MPTBlock, RMSNorm, alibi_bias, causal_bias, rotary_table

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
