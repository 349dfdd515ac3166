"""Pillow's bicubic resize as two MatMuls, so that raw camera bytes can be an input of the exported graph.

The released policies were trained on frames resized by Pillow. Pillow filters rows, rounds to bytes, filters columns
and rounds again; the two MatMuls below, each followed by round and clip, give the same bytes (a test compares them).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

_A = -0.5  # Pillow's bicubic; OpenCV and PyTorch use -0.75
_SUPPORT = 2.0


def _bicubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = ((_A + 2.0) * x - (_A + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * _A
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def bicubic_matrix(size_in: int, size_out: int) -> torch.Tensor:
    """Return float32 (size_out, size_in): row i holds the weights of output pixel i; shrinking widens the filter."""
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    matrix = np.zeros((size_out, size_in))
    for row in range(size_out):
        center = (row + 0.5) * scale
        first = max(int(center - _SUPPORT * stretch + 0.5), 0)
        last = min(int(center + _SUPPORT * stretch + 0.5), size_in)
        weights = _bicubic((np.arange(first, last) - center + 0.5) / stretch)
        matrix[row, first:last] = weights / weights.sum()
    return torch.from_numpy(matrix).float()


class BicubicResize(nn.Module):
    """uint8 (N, size_in, size_in, 3) -> float32 (N, 3, size_out, size_out) with whole values 0 to 255."""

    matrix: torch.Tensor

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.register_buffer("matrix", bicubic_matrix(size_in, size_out), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image.permute(0, 3, 1, 2).to(self.matrix.dtype)
        x = _to_bytes(x @ self.matrix.T)  # along columns first, as Pillow does
        return _to_bytes(self.matrix @ x)


def _to_bytes(x: torch.Tensor) -> torch.Tensor:
    return torch.floor(x + 0.5).clamp(0.0, 255.0)
