"""Common record of every source format, before it is mapped to CALVIN's arrays, and what their readers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rfedge.data.conversion.options import ROTATION_FIELDS, ConversionOptions, FieldSource
from rfedge.data.frames import Array
from rfedge.errors import DatasetError, RfedgeError
from rfedge.messages import GRIPPER_IMAGE_SHAPE, STATIC_IMAGE_SHAPE
from rfedge.robot.camera import check_resize, resize_window

IMAGE_SHAPES = {"static": STATIC_IMAGE_SHAPE, "gripper": GRIPPER_IMAGE_SHAPE}


@dataclass(frozen=True, slots=True)
class Layout:
    """Known conventions of a source."""

    name: str  # of the layout, as the user sees it
    fields: Mapping[str, FieldSource] = field(default_factory=dict)
    # position_scale_m, rotation_scale_rad: metres and radians per unit of its relative actions
    position_scale_m: float = 0.02
    rotation_scale_rad: float = 0.05
    rotation: str = "euler"  # of its actions, one of `options.ROTATIONS`
    gripper: str = "close-1-open1"  # one of `options.GRIPPER_CONVENTIONS`
    flip: str = "none"  # one of `options.FLIPS`
    frequency_hz: float | None = None  # of its frames; None when the source does not say


@dataclass(frozen=True, slots=True, eq=False)
class SourceEpisode:
    """One episode of T frames."""

    name: str  # for error texts
    # "static" uint8 (T, 200, 200, 3) and, where there is one, "gripper" uint8 (T, 84, 84, 3)
    images: Mapping[str, npt.NDArray[np.uint8]]
    values: Mapping[str, npt.NDArray[np.float64]]  # float64 (T, n) of every mapped field of `options.VALUE_FIELDS`
    instructions: tuple[str, ...]  # T sentences, one a frame

    @property
    def num_frames(self) -> int:
        return len(self.instructions)


class Source(ABC):
    """A dataset in another format, open for reading; the user's fields stand before those of its layout."""

    layout: Layout
    num_episodes: int
    subject: str  # of errors about all of it
    no_static: tuple[str, str, str]  # got, expected and remedy where no field is the static camera

    def __init__(self, options: ConversionOptions, found: Mapping[str, FieldSource]) -> None:
        self.options = options
        self.fields: Mapping[str, FieldSource] = {**unless_replaced(found, options.fields), **options.fields}

    @abstractmethod
    def choices(self, field: str) -> Sequence[str] | None:
        """Return the arrays that can be this field; None for any."""

    def field_faults(self) -> list[RfedgeError]:
        """List the mapped fields that are not there: while there are any, no episode can be read."""
        found: list[RfedgeError] = []
        for name, source in self.fields.items():
            if (choices := self.choices(name)) is not None and source.key not in choices:
                got, expected = f"no {source.key!r} for {name}", f"one of {', '.join(choices)}"
                found.append(DatasetError(self.subject, got=got, expected=expected, remedy=f"Correct --map {name}=KEY."))
        if "static" not in self.fields:
            got, expected, remedy = self.no_static
            found.append(DatasetError(self.subject, got=got, expected=expected, remedy=remedy))
        return found

    def file_faults(self) -> list[RfedgeError]:
        """List what is wrong with its files as a whole, before an episode is read."""
        return []

    def notes(self) -> list[str]:
        """Say what was read differently from what its record says, once it was read."""
        return []

    @abstractmethod
    def read(self, index: int, *, images: bool) -> SourceEpisode:
        """Read one episode; raises DatasetError where it is damaged or lacks a field."""

    @abstractmethod
    def close(self) -> None:
        """Release its files; calling it again does nothing."""

    def fit_images(self, field: str, where: str, pictures: Iterable[Array], count: int) -> npt.NDArray[np.uint8]:
        """Bring `count` pictures of one camera to the policy's size."""
        shape, flip = IMAGE_SHAPES[field], self.options.flip or self.layout.flip
        images = np.empty((count, *shape), dtype=np.uint8)
        for step, picture in enumerate(pictures):
            images[step] = fit_image(where, picture, shape, resize=self.options.resize, flip=flip)
        return images


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


def select_elements(subject: str, source: FieldSource, array: Array) -> npt.NDArray[np.float64]:
    """Return the elements of (T,) or (T, n) numbers that `source` names, as float64 (T, m)."""
    numbers = np.asarray(array)
    if numbers.ndim == 1:
        numbers = numbers[:, None]
    if numbers.ndim != 2 or numbers.dtype.kind not in "fiub":
        got = f"{numbers.dtype} {numbers.shape}"
        remedy = "Map another array with --map."
        raise DatasetError(f"{source.key} of {subject}", got=got, expected="numbers (T, n)", remedy=remedy)
    if source.stop is not None and source.stop > numbers.shape[1]:
        expected = f"at least {source.stop}"
        remedy = "Correct the range in --map."
        raise DatasetError(f"{source} of {subject}", got=f"{numbers.shape[1]} elements", expected=expected, remedy=remedy)
    return np.asarray(numbers[:, source.start : source.stop], dtype=np.float64)


def unless_replaced(found: Mapping[str, FieldSource], chosen: Mapping[str, FieldSource]) -> dict[str, FieldSource]:
    """Return the fields of a layout without those that the user's choice says in another way."""
    parts = {"tcp_pos", *ROTATION_FIELDS, "gripper_width", "joints"}
    dropped: set[str] = set()
    if "state" in chosen:
        dropped |= parts
    elif parts & chosen.keys():
        dropped.add("state")
    if set(ROTATION_FIELDS) & chosen.keys():
        dropped |= set(ROTATION_FIELDS)
    return {name: source for name, source in found.items() if name not in dropped}
