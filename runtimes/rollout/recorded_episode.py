"""A robot that is none: it shows the frames of a recorded episode and keeps what it was sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rfedge.data.calvin import CalvinDataset, Segment
from rfedge.errors import ConfigError
from rfedge.messages import Observation
from rfedge.robot.conventions import Conventions

_KEYS = ("rgb_static", "rgb_gripper", "robot_obs")


@dataclass(frozen=True, eq=False)
class RecordedFrames(Sequence[Observation]):
    """Frames that are read from disk one by one, `read` with an index from 0."""

    read: Callable[[int], Observation]
    num_frames: int

    @classmethod
    def of(cls, dataset: CalvinDataset, segment: Segment) -> RecordedFrames:
        """Return those of one language segment; reading one raises DatasetError where it is missing or damaged."""

        def read(index: int) -> Observation:
            return Observation.from_dict({**dataset.frame(segment.start + index, _KEYS), "task": segment.instruction})

        return cls(read, segment.num_frames)

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, index: object) -> Observation:  # type: ignore[override]
        if not isinstance(index, int):
            raise TypeError(f"one frame at a time: got index {index!r}")
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.read(index)


def recorded_actions(dataset: CalvinDataset, segment: Segment) -> npt.NDArray[np.float64]:
    """Return what was recorded in a language segment, float64 (frame, 7)."""
    numbers = range(segment.start, segment.end + 1)
    return np.array([dataset.frame(number, ("rel_actions",))["rel_actions"] for number in numbers])


class RecordedEpisodeRobot:
    """Shows one frame per control step, also where the loop did not look at the one before; the last one stays.

    To see what a policy would have done where a person did something: compare `sent`, float32 (7,) each, with
    `recorded_actions`. `resize` is the camera geometry that the frames have. Raises ConfigError if there is no frame.
    """

    def __init__(self, frames: Sequence[Observation], *, resize: str | None = None) -> None:
        self._resize = resize
        if not frames:
            raise ConfigError("recorded episode", got="no frames", expected="at least one", remedy="Choose another segment.")
        self._frames = frames
        self.sent: list[npt.NDArray[np.float32]] = []
        self.num_stops = 0

    @classmethod
    def open(cls, path: Path, segment: int = 0, *, split: str | None = None) -> RecordedEpisodeRobot:
        """Show language segment number `segment` of a dataset in CALVIN's format."""
        dataset = CalvinDataset.open(path, split=split)
        if not 0 <= segment < len(dataset.segments):
            remedy = "`rfedge demos inspect` lists the segments."
            raise ConfigError("segment", got=segment, expected=f"0 to {len(dataset.segments) - 1}", remedy=remedy)
        return cls(RecordedFrames.of(dataset, dataset.segments[segment]), resize=dataset.conventions.resize)

    @property
    def conventions(self) -> Conventions:
        """The camera geometry of the recording; it moves nothing at any rate."""
        return Conventions(resize=self._resize)

    def observe(self) -> Observation:
        return self._frames[min(len(self.sent), len(self._frames) - 1)]

    def apply(self, action: npt.NDArray[np.float32]) -> None:
        self.sent.append(action.copy())

    def stop(self) -> None:
        self.num_stops += 1
