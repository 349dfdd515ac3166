"""Random shifts on raw bytes: pad by repeating the border, then crop somewhere else.

Source: RoboFlamingo's RandomShifts, 10 px (static) and 4 px (gripper) on images of 224 px. One shift a window by default:
a new one every frame, as in the released code, buries the motion between frames under noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from rfedge.messages import GRIPPER_IMAGE_SHAPE, STATIC_IMAGE_SHAPE
from rfedge.train.config import ShiftKind

_REFERENCE_SIZE_PX: Final = 224
STATIC_SHIFT_PX: Final = round(10 * STATIC_IMAGE_SHAPE[0] / _REFERENCE_SIZE_PX)
GRIPPER_SHIFT_PX: Final = round(4 * GRIPPER_IMAGE_SHAPE[0] / _REFERENCE_SIZE_PX)

Images = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ImageShifts:
    """Where the images of a batch are cropped: int64 (B, W or 1, 2) rows and columns, 0 to twice the limit, a camera."""

    static: Offsets
    gripper: Offsets

    @classmethod
    def sample(cls, num_windows: int, num_frames: int, rng: np.random.Generator, kind: ShiftKind) -> ImageShifts | None:
        """Sample the shifts of a whole batch, of which each process then takes its part; None where nothing is shifted."""
        if kind == "none":
            return None
        static, gripper = (
            sample_offsets(num_windows, num_frames, limit_px, rng, kind) for limit_px in (STATIC_SHIFT_PX, GRIPPER_SHIFT_PX)
        )
        return cls(static, gripper)

    def part(self, chosen: slice) -> ImageShifts:
        return ImageShifts(self.static[chosen], self.gripper[chosen])

    def apply(self, static: Images, gripper: Images) -> tuple[Images, Images]:
        """Shift the images of both cameras, uint8 (B, W, H, H, 3)."""
        return shift_images(static, STATIC_SHIFT_PX, self.static), shift_images(gripper, GRIPPER_SHIFT_PX, self.gripper)


def sample_offsets(num_windows: int, num_frames: int, limit_px: int, rng: np.random.Generator, kind: ShiftKind) -> Offsets:
    """Sample up to `limit_px` pixels in both directions of both axes, once per window or per frame."""
    return rng.integers(0, 2 * limit_px + 1, size=(num_windows, num_frames if kind == "frame" else 1, 2))


def shift_images(images: Images, limit_px: int, offsets: Offsets) -> Images:
    """Crop uint8 (B, W, H, H, 3) where `sample_offsets` says, the border repeated by `limit_px` pixels first."""
    num_windows, num_frames, size = images.shape[:3]
    offsets = np.broadcast_to(offsets, (num_windows, num_frames, 2))
    border = (limit_px, limit_px)
    padded = np.pad(images, ((0, 0), (0, 0), border, border, (0, 0)), mode="edge")
    shifted = np.empty_like(images)
    for window in range(num_windows):
        for frame in range(num_frames):
            row, column = offsets[window, frame]
            shifted[window, frame] = padded[window, frame, row : row + size, column : column + size]
    return shifted
