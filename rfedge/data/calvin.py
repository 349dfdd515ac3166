"""Reads a split of a CALVIN dataset: language segments over numbered frames, loaded one by one when asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rfedge.data.frames import FRAME_KEYS, Array, frame_name, frame_number, read_frame
from rfedge.data.object_file import read_object_file
from rfedge.data.statistics import DatasetStatistics, StatisticsBuilder
from rfedge.errors import DatasetError, explain

__all__ = ["COLLECTION_RECORD", "LANGUAGE_FILE", "CalvinDataset", "Segment"]

LANGUAGE_FILE: Final = "lang_annotations/auto_lang_ann.npy"
COLLECTION_RECORD: Final = "collection.json"
_DEFAULT_SPLIT: Final = "training"


@dataclass(frozen=True, slots=True)
class Segment:
    """Frames `start` to `end`, both inclusive, that do `task` and are described by `instruction`."""

    start: int
    end: int
    task: str
    instruction: str

    @property
    def num_frames(self) -> int:
        return self.end - self.start + 1


@dataclass(frozen=True, slots=True)
class CalvinDataset:
    """One split on disk.

    Attributes:
        folder: where the frame files are.
        segments: the language segments, in the order of the annotation file.
    """

    folder: Path
    segments: tuple[Segment, ...]

    @classmethod
    def open(cls, path: Path) -> CalvinDataset:
        """Read the annotations and check that every frame they name is there.

        Args:
            path: a split folder, or the dataset's root, which means its `training` split.

        Raises:
            DatasetError: a folder or file is missing or damaged, or the collection was interrupted.
        """
        folder = path / _DEFAULT_SPLIT if (path / _DEFAULT_SPLIT).is_dir() else path
        if not folder.is_dir():
            raise DatasetError(
                explain(
                    f"dataset {path}",
                    got="no folder",
                    expected="a CALVIN dataset",
                    remedy="Make one with `rfedge demos --output`.",
                )
            )
        _refuse_interrupted_collection(path, folder)
        numbers = _frame_numbers(folder)
        if not numbers:
            raise DatasetError(
                explain(
                    f"dataset {folder}",
                    got="no frame files",
                    expected=f"files named {frame_name(0)}",
                    remedy="Give the folder that holds the frames, or make one with `rfedge demos --output`.",
                )
            )
        segments = _read_segments(folder / LANGUAGE_FILE)
        for segment in segments:
            missing = next((number for number in range(segment.start, segment.end + 1) if number not in numbers), None)
            if missing is not None:
                raise DatasetError(
                    explain(
                        f"dataset {folder}",
                        got=f"no {frame_name(missing)}",
                        expected=f"frames {segment.start} to {segment.end} of {segment.task!r}",
                        remedy="Copy the dataset again, all of it.",
                    )
                )
        return cls(folder, segments)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks shown, sorted."""
        return tuple(sorted({segment.task for segment in self.segments}))

    @property
    def instructions(self) -> tuple[str, ...]:
        """Every instruction once, sorted."""
        return tuple(sorted({segment.instruction for segment in self.segments}))

    def frame_path(self, number: int) -> Path:
        return self.folder / frame_name(number)

    def frame(self, number: int, keys: Iterable[str] = FRAME_KEYS) -> dict[str, Array]:
        """Load the arrays `keys` of one frame; shapes and dtypes are in `rfedge.data.frames`.

        Raises:
            DatasetError: the frame is missing or damaged or is not of this robot.
        """
        return read_frame(self.frame_path(number), keys)

    def frame_numbers(self) -> list[int]:
        """Every frame of every segment once, ascending (CALVIN's segments may overlap)."""
        return sorted({number for segment in self.segments for number in range(segment.start, segment.end + 1)})

    def statistics(self) -> DatasetStatistics:
        """Read the numbers of all segments; an overlapped frame counts in each of its segments."""
        builder = StatisticsBuilder()
        keys = ("robot_obs", "scene_obs", "rel_actions")
        for segment in self.segments:
            rows = [self.frame(number, keys) for number in range(segment.start, segment.end + 1)]
            builder.add_rows(segment.task, rows)
        return builder.result()


def _refuse_interrupted_collection(path: Path, folder: Path) -> None:
    for record in {path / COLLECTION_RECORD, folder.parent / COLLECTION_RECORD}:
        if not record.is_file():
            continue
        try:
            complete = bool(json.loads(record.read_bytes())["complete"])
        except (ValueError, KeyError, TypeError):
            raise DatasetError(
                explain(f"file {record}", got="unreadable text", expected="a collection record", remedy="Collect again.")
            ) from None
        if not complete:
            raise DatasetError(
                explain(
                    f"dataset {path}",
                    got="an interrupted collection",
                    expected="a finished one",
                    remedy="Run the same `rfedge demos` command again: it goes on where it stopped.",
                )
            )


def _frame_numbers(folder: Path) -> set[int]:
    with os.scandir(folder) as entries:
        numbers = (frame_number(entry.name) for entry in entries)
        return {number for number in numbers if number is not None}


def _read_segments(path: Path) -> tuple[Segment, ...]:
    if not path.is_file():
        raise DatasetError(
            explain(
                f"dataset {path.parent.parent}",
                got="no language annotations",
                expected=LANGUAGE_FILE,
                remedy="Use a split with language, or copy the file again.",
            )
        )
    content = read_object_file(path)
    try:
        language, bounds = content["language"], content["info"]["indx"]
        instructions, tasks = language["ann"], language["task"]
        rows = list(zip(bounds, tasks, instructions, strict=True))
        segments = tuple(Segment(int(start), int(end), str(task), str(text)) for (start, end), task, text in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            explain(
                f"file {path}",
                got=f"another structure ({error!r})",
                expected="language.ann, language.task and info.indx of one length",
                remedy="Use CALVIN's auto_lang_ann.npy.",
            )
        ) from None
    if not segments:
        raise DatasetError(
            explain(
                f"file {path}",
                got="no segments",
                expected="at least one",
                remedy="Collect demonstrations with `rfedge demos`.",
            )
        )
    for segment in segments:
        if not 0 <= segment.start <= segment.end or not segment.instruction.strip():
            raise DatasetError(
                explain(
                    f"file {path}",
                    got=str(segment),
                    expected="0 <= start <= end and an instruction",
                    remedy="Copy it again.",
                )
            )
    return segments
