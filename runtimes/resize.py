"""Square camera images of other sizes brought to the policy's, without an imaging library.

The filter is the one that demonstrations of other sizes were converted with: Pillow's bicubic, whose support widens when
an image shrinks, so that thin edges do not flicker. A policy then sees what it was trained on.
"""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["fit_square"]

_SHARPNESS: Final = -0.5  # a of the cubic kernel, Pillow's choice
_SUPPORT: Final = 2.0


def fit_square(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Return uint8 (size, size, 3) of a square RGB image, uint8 (n, n, 3); one of this size is returned as it is."""
    if image.shape[0] == size:
        return image
    weights = _weights(image.shape[0], size)
    # Columns first, then rows, and a rounding between the two, as Pillow does.
    narrow = _to_bytes(np.einsum("rcd,oc->rod", image.astype(np.float32), weights, optimize=True))
    return _to_bytes(np.einsum("rcd,or->ocd", narrow.astype(np.float32), weights, optimize=True))


def _to_bytes(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    # Halves go up, as in the fixed-point arithmetic of the original.
    rounded: npt.NDArray[np.uint8] = np.floor(np.clip(pixels, 0.0, 255.0) + np.float32(0.5)).astype(np.uint8)
    return rounded


@functools.lru_cache(maxsize=16)  # a camera does not change its size; a hostile client may
def _weights(source: int, target: int) -> npt.NDArray[np.float32]:
    """Return float32 (target, source), rows that sum to 1."""
    scale = source / target
    widening = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    distances = (np.arange(source)[None] + 0.5 - centres[:, None]) / widening
    weights = np.where(np.abs(distances) < _SUPPORT, _cubic(np.abs(distances)), 0.0)
    rows: npt.NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return rows


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    a = _SHARPNESS
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, inner, outer)
