"""Random shifts on raw bytes: pad by repeating the border, then crop somewhere else.

Source: RoboFlamingo's RandomShifts, 10 px (static) and 4 px (gripper) on images of 224 px, here converted to the
camera's own pixels. One shift a window by default: a new shift every frame, as in the released code, buries the motion
between frames under noise, and a policy trained from nothing has no other way to see it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from rfedge.messages import GRIPPER_IMAGE_SHAPE, STATIC_IMAGE_SHAPE
from rfedge.train.config import ShiftKind

__all__ = ["GRIPPER_SHIFT_PX", "STATIC_SHIFT_PX", "random_shift"]

_REFERENCE_SIZE_PX: Final = 224
STATIC_SHIFT_PX: Final = round(10 * STATIC_IMAGE_SHAPE[0] / _REFERENCE_SIZE_PX)
GRIPPER_SHIFT_PX: Final = round(4 * GRIPPER_IMAGE_SHAPE[0] / _REFERENCE_SIZE_PX)


def random_shift(
    images: npt.NDArray[np.uint8], limit_px: int, rng: np.random.Generator, *, kind: ShiftKind
) -> npt.NDArray[np.uint8]:
    """Shift uint8 (B, W, H, H, 3) by up to `limit_px` pixels on both axes, one draw per window or per frame."""
    if kind == "none":
        return images
    num_windows, num_frames, size = images.shape[:3]
    draws = rng.integers(0, 2 * limit_px + 1, size=(num_windows, num_frames if kind == "frame" else 1, 2))
    offsets = np.broadcast_to(draws, (num_windows, num_frames, 2))
    border = (limit_px, limit_px)
    padded = np.pad(images, ((0, 0), (0, 0), border, border, (0, 0)), mode="edge")
    shifted = np.empty_like(images)
    for window in range(num_windows):
        for frame in range(num_frames):
            row, column = offsets[window, frame]
            shifted[window, frame] = padded[window, frame, row : row + size, column : column + size]
    return shifted
