"""Brings the pictures of any camera to the shape that the policy was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rfedge.errors import ContractError, explain
from rfedge.messages import UInt8Array
from rfedge.runtimes.resize import fit_square

__all__ = ["fit_camera"]


def fit_camera(name: str, image: npt.NDArray[Any], shape: tuple[int, int, int]) -> UInt8Array:
    """Return a copy of uint8 (height, width, 3) as `shape`: the square in its middle, resized.

    Raises:
        ContractError: it has another dtype or number of axes or colours.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ContractError(
            explain(
                f"camera {name!r}",
                got=f"{image.dtype} {image.shape}",
                expected="uint8 (height, width, 3) RGB",
                remedy="Convert the picture to RGB bytes.",
            )
        )
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    # Copied first: a camera's driver may write into its buffer while an overlapped inference reads the picture.
    return fit_square(image[top : top + side, left : left + side].copy(), shape[0])
