"""One camera geometry from data to robot: how a picture of any size is brought to the policy's, without an imaging library.

    crop      the middle of the picture that has the wanted aspect ratio; what is beside it is not seen
    stretch   the whole picture, whatever its aspect ratio
    pad       the whole picture with its aspect ratio kept, black bars beside it

A post at a quarter of the width of a 640 x 480 picture is in column 33, 50 or 50 of 200: a policy acts for the geometry that
its demonstrations had. Square cameras look alike in all three.

The filter is Pillow's bicubic, whose support widens when an image shrinks, so that thin edges do not flicker.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from rfedge.errors import one_of

__all__ = ["DEFAULT_RESIZE", "RESIZES", "Resize", "Window", "check_resize", "fit_image", "resize_window"]

Resize = Literal["crop", "stretch", "pad"]
RESIZES: Final[tuple[Resize, ...]] = ("crop", "stretch", "pad")
DEFAULT_RESIZE: Final[Resize] = "crop"

_SHARPNESS: Final = -0.5  # a of the cubic kernel, Pillow's choice
_SUPPORT: Final = 2.0


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of a picture goes where: rows and columns of the source, then of the result.

    Attributes:
        top, left, height, width: the part that is seen.
        out_top, out_left, out_height, out_width: where it lies in the result; black beside it.
    """

    top: int
    left: int
    height: int
    width: int
    out_top: int
    out_left: int
    out_height: int
    out_width: int

    def cut(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return the part of (height, width, 3) that is seen."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]

    def place(self, fitted: npt.NDArray[np.uint8], shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
        """Return a picture of `shape` with the resized part in its place."""
        if fitted.shape == shape:
            return fitted
        padded = np.zeros(shape, dtype=np.uint8)
        padded[self.out_top : self.out_top + self.out_height, self.out_left : self.out_left + self.out_width] = fitted
        return padded


def check_resize(name: str) -> Resize:
    """Return `name` as a `Resize`; raises ConfigError, which names the nearest one."""
    return one_of(RESIZES, name, "resize", remedy="Choose one of them.")


def resize_window(source: tuple[int, int], target: tuple[int, int], resize: Resize) -> Window:
    """Return what is seen of a picture of `source` (height, width) and where it lies in one of `target` (height, width)."""
    (rows, columns), (height, width) = source, target
    if resize == "stretch":
        return Window(0, 0, rows, columns, 0, 0, height, width)
    if resize == "crop":
        # In whole numbers: the widest part of the target's aspect ratio.
        seen_rows, seen_columns = min(rows, columns * height // width), min(columns, rows * width // height)
        seen_rows, seen_columns = max(seen_rows, 1), max(seen_columns, 1)
        return Window((rows - seen_rows) // 2, (columns - seen_columns) // 2, seen_rows, seen_columns, 0, 0, height, width)
    factor = min(height / rows, width / columns)
    inner_height, inner_width = max(round(rows * factor), 1), max(round(columns * factor), 1)
    return Window(0, 0, rows, columns, (height - inner_height) // 2, (width - inner_width) // 2, inner_height, inner_width)


def fit_image(image: npt.NDArray[np.uint8], shape: tuple[int, int, int], resize: Resize) -> npt.NDArray[np.uint8]:
    """Return uint8 RGB of `shape`, of uint8 (height, width, 3); one of this shape already is returned as it is."""
    if image.shape == shape:
        return image
    window = resize_window((image.shape[0], image.shape[1]), (shape[0], shape[1]), resize)
    return window.place(_resample(window.cut(image), window.out_height, window.out_width), shape)


def _resample(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    # Columns first, then rows, and a rounding between the two, as Pillow does.
    pixels = image
    if image.shape[1] != width:
        weights = _weights(image.shape[1], width)
        pixels = _to_bytes(np.einsum("rcd,oc->rod", pixels.astype(np.float32), weights, optimize=True))
    if image.shape[0] != height:
        weights = _weights(image.shape[0], height)
        pixels = _to_bytes(np.einsum("rcd,or->ocd", pixels.astype(np.float32), weights, optimize=True))
    return pixels


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
