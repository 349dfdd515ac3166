"""Common record of every source format, before it is mapped to CALVIN's arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rfedge.data.conversion.options import ROTATION_FIELDS, FieldSource
from rfedge.data.frames import Array
from rfedge.errors import DatasetError, RfedgeError


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


class Source(Protocol):
    """A dataset in another format, open for reading."""

    layout: Layout
    fields: Mapping[str, FieldSource]
    num_episodes: int

    def field_faults(self) -> list[RfedgeError]:
        """List the mapped fields that are not there: while there are any, no episode can be read."""

    def file_faults(self) -> list[RfedgeError]:
        """List what is wrong with its files as a whole, before an episode is read."""
        return []

    def notes(self) -> list[str]:
        """Say what was read differently from what its record says, once it was read."""
        return []

    def read(self, index: int, *, images: bool) -> SourceEpisode:
        """Read one episode; raises DatasetError where it is damaged or lacks a field."""

    def close(self) -> None:
        """Release its files; calling it again does nothing."""


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


def unknown_key(subject: str, name: str, source: FieldSource, choices: Sequence[str]) -> DatasetError | None:
    """Return the error for a `source` of the field `name` that is none of the source's arrays, or None."""
    if source.key in choices:
        return None
    remedy = f"Correct --map {name}=KEY."
    return DatasetError(subject, got=f"no {source.key!r} for {name}", expected=f"one of {', '.join(choices)}", remedy=remedy)


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
