"""Perceiver resampler: a fixed number of latents reads the patch tokens of one image. Source: Flamingo, appendix A.1.1."""

from __future__ import annotations

import torch
from torch import nn

from rfedge.config import ResamplerConfig
from rfedge.model.attention import FeedForward, QueryAttention
from rfedge.model.token_merging import size_bias

# N = images, P = patch tokens, R = latents, D = vision width


class ResamplerLayer(nn.Module):
    def __init__(self, config: ResamplerConfig, width: int) -> None:
        super().__init__()
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.attention = QueryAttention(width, width, config.heads, config.head_size)
        self.feed_forward = FeedForward(width, config.mlp_ratio)

    def forward(self, latents_NRD: torch.Tensor, media_NPD: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        latents = self.norm_latents(latents_NRD)
        # Keys and values are media AND latents: a latent can also read its neighbours.
        context = torch.cat([self.norm_media(media_NPD), latents], dim=1)
        x = latents_NRD + self.attention(latents, context, bias)
        return x + self.feed_forward(x)  # type: ignore[no-any-return]


class PerceiverResampler(nn.Module):
    """Patch tokens (N, P, D) -> latents (N, R, D); images do not see each other.

    Merged tokens come with the number of patches in each, `size` (N, P, 1).
    """

    def __init__(self, config: ResamplerConfig, width: int) -> None:
        super().__init__()
        # Small, so that from the first step on a latent carries its image and not its own noise (released: N(0, 1)).
        self.latents = nn.Parameter(torch.randn(config.latents, width) * 0.02)
        self.layers = nn.ModuleList(ResamplerLayer(config, width) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, media_NPD: torch.Tensor, size_NP1: torch.Tensor | None = None) -> torch.Tensor:
        x = self.latents.expand(media_NPD.shape[0], -1, -1)
        bias = None if size_NP1 is None else size_bias(torch.cat([size_NP1, torch.ones_like(x[..., :1])], dim=1))
        for layer in self.layers:
            x = layer(x, media_NPD, bias)
        return self.norm(x)  # type: ignore[no-any-return]
