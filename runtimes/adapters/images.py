"""Brings the pictures of any camera to the shape that the policy was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rfedge.errors import ContractError
from rfedge.messages import UInt8Array
from rfedge.robot.camera import DEFAULT_RESIZE, check_resize, fit_image

__all__ = ["fit_camera"]


def fit_camera(name: str, image: npt.NDArray[Any], shape: tuple[int, int, int], resize: str = DEFAULT_RESIZE) -> UInt8Array:
    """Return a copy of a camera's uint8 (height, width, 3) RGB as `shape`.

    Args:
        name: of the camera, for an error.
        resize: the policy's geometry, see `rfedge.robot.camera`.

    Raises:
        ContractError: the image has another dtype or number of axes or colours.
        ConfigError: no geometry is called `resize`.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ContractError(
            f"camera {name!r}",
            got=f"{image.dtype} {image.shape}",
            expected="uint8 (height, width, 3) RGB",
            remedy="Convert the picture to RGB bytes.",
        )
    # Copied first: a camera's driver may write into its buffer while an overlapped inference reads the picture.
    return fit_image(image.copy(), shape, check_resize(resize))
