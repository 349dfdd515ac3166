"""Rotary positions and the causal bias, shared by GPT-NeoX and LLaMA. Source: RoFormer, section 3.2."""

from __future__ import annotations

import torch

# N = batch, H = heads, T = text tokens, E = elements of a head, R = elements that are turned (R <= E)


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
