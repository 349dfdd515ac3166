"""CLIP's vision transformer, from camera bytes to patch tokens.

RoboFlamingo reads the patch tokens after the last block, without the class token, without the final LayerNorm and
without the projection into the image-text space. Source: open_clip ViT-L/14 `openai` (QuickGELU).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from rfedge.config import VisionConfig
from rfedge.model.attention import attend, split_heads
from rfedge.model.token_merging import merge_tokens, size_bias

# N = images, P = patches, L = tokens (P + 1), D = width

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class FramePreprocess(nn.Module):
    """uint8 (N, size_in, size_in, 3) -> normalised float32 (N, 3, size_out, size_out), as CLIP expects it."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.resize = BicubicResize(size_in, size_out)
        mean, std = torch.tensor(_CLIP_MEAN), torch.tensor(_CLIP_STD)
        self.register_buffer("scale", (1.0 / (255.0 * std)).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(3, 1, 1), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.resize(image) * self.scale + self.shift  # type: ignore[no-any-return]


class VisionBlock(nn.Module):
    """Pre-norm transformer block with packed q|k|v and QuickGELU."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.ln_1 = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out_proj = nn.Linear(config.width, config.width)
        self.ln_2 = nn.LayerNorm(config.width)
        self.mlp_up = nn.Linear(config.width, config.mlp_ratio * config.width)
        self.mlp_down = nn.Linear(config.mlp_ratio * config.width, config.width)

    def forward(
        self, x_NLD: torch.Tensor, size_NL1: torch.Tensor | None = None, num_merged: int = 0
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens; with `num_merged`, that many fewer, and their sizes (`rfedge.model.token_merging`)."""
        x, size = x_NLD, size_NL1
        packed = self.qkv(self.ln_1(x)).chunk(3, dim=-1)
        q, k, v = (split_heads(part, self.heads) for part in packed)
        x = x + self.out_proj(attend(q, k, v, None if size is None else size_bias(size)))
        if num_merged:
            x, size = merge_tokens(x, size, packed[1].unflatten(-1, (self.heads, -1)).mean(dim=2), num_merged)
        hidden = self.mlp_up(self.ln_2(x))
        x = x + self.mlp_down(hidden * torch.sigmoid(1.702 * hidden))
        return x if size is None else (x, size)


def _for_relu(convolution: nn.Conv2d) -> nn.Conv2d:
    """Sample weights that keep the size of what passes through convolutions with ReLU between them (He et al., 2015)."""
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def _places(num_patches: int, width: int) -> torch.Tensor:
    """Initial embedding of the class token and of each patch, (P + 1, D): waves of many lengths along both sides.

    Neighbours are alike, so what is learnt of one place holds nearby, and a weighted mean of places says where it lies.
    """
    side = math.isqrt(num_patches)
    along = torch.linspace(-1.0, 1.0, side) if side > 1 else torch.zeros(1)
    frequency = 0.5 * torch.pi * torch.logspace(0.0, math.log10(max(side, 2)), (width + 3) // 4)
    wave = torch.cat([torch.sin(along[:, None] * frequency), torch.cos(along[:, None] * frequency)], dim=1)
    rows, columns = wave[:, None].expand(side, side, -1), wave[None].expand(side, side, -1)
    places = torch.cat([rows, columns], dim=-1).flatten(0, 1)[:, :width]
    return 0.4 * torch.cat([torch.zeros(1, width), places])


class VisionTransformer(nn.Module):
    """Normalised images (N, 3, size, size) -> patch tokens (N, P, D).

    With `merge_tokens` above 0, which an exporter sets, that many fewer after each block, and their sizes (N, tokens, 1).
    """

    merge_tokens: int = 0

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        first, *others = (*config.stem_widths, config.width)
        side = config.patch_size // 2 ** len(others)
        # The first without overlap and border, so that the camera normalisation can be folded into it.
        self.conv1 = nn.Conv2d(3, first, side, stride=side, bias=bool(others))
        self.stem = [f"conv{index}" for index in range(2, 2 + len(others))]
        for name, before, width in zip(self.stem, (first, *others), others, strict=False):
            self.add_module(name, _for_relu(nn.Conv2d(before, width, 3, stride=2, padding=1)))
        if others:
            _for_relu(self.conv1)
        self.class_embedding = nn.Parameter(torch.randn(config.width) * config.width**-0.5)
        # About half as large as a patch: a network that starts from nothing must know at once where it looks.
        self.positional_embedding = nn.Parameter(_places(config.num_patches, config.width))
        self.ln_pre = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.layers))

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x: torch.Tensor = self.conv1(image)
        for name in self.stem:
            x = self.get_submodule(name)(torch.relu(x))
        x = x.flatten(2).transpose(1, 2)  # (N, P, D)
        class_token = self.class_embedding.expand(x.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([class_token, x], dim=1) + self.positional_embedding)
        if not self.merge_tokens:
            for block in self.blocks:
                x = block(x)
            return x[:, 1:]
        size = None
        for block in self.blocks:
            x, size = block(x, size, min(self.merge_tokens, (x.shape[1] - 1) // 2))
        assert size is not None, "a tower has blocks"
        return x[:, 1:], size[:, 1:]


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
