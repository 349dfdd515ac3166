"""Brings camera images to the two sizes of the policy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rfedge.data.frames import Array
from rfedge.errors import DatasetError
from rfedge.messages import GRIPPER_IMAGE_SHAPE, STATIC_IMAGE_SHAPE
from rfedge.robot.camera import check_resize, resize_window

IMAGE_SHAPES = {"static": STATIC_IMAGE_SHAPE, "gripper": GRIPPER_IMAGE_SHAPE}


def fit_image(subject: str, image: Array, shape: tuple[int, int, int], *, resize: str, flip: str) -> npt.NDArray[np.uint8]:
    """Return uint8 RGB of `shape`, from (H, W, 3) or (3, H, W); `flip` is one of `options.FLIPS`."""
    from PIL import Image

    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        image = image.transpose(1, 2, 0)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        remedy = "Map a camera of RGB bytes with --map."
        raise DatasetError(subject, got=f"{image.dtype} {image.shape}", expected="uint8 (height, width, 3)", remedy=remedy)
    if flip != "none":
        image = image[::-1] if flip == "vertical" else image[::-1, ::-1]
    if image.shape == shape:
        return np.ascontiguousarray(image)
    window = resize_window((image.shape[0], image.shape[1]), (shape[0], shape[1]), check_resize(resize))
    # Pillow itself, some times as fast as `rfedge.robot.camera.fit_image`, whose filter is this one.
    size = (window.out_width, window.out_height)
    seen = np.ascontiguousarray(window.cut(image))
    return window.place(np.asarray(Image.fromarray(seen).resize(size, Image.Resampling.BICUBIC)), shape)
