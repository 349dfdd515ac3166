"""Reads and writes a split of a CALVIN dataset: language segments over numbered frames, loaded one by one when asked for.

The released splits (debug, D, ABC, ABCD) are read as published; a training split has these files, of which only the
frames and one language file are needed:

    episode_{number:07d}.npz             one per frame; numbers have gaps between episodes
    ep_start_end_ids.npy, ep_lens.npy    bounds of the episodes
    scene_info.npy                       scenes, see `rfedge.data.scene.scenes`; not in validation splits
    lang_annotations/auto_lang_ann.npy   segments, tasks, instructions, sentence embeddings
    lang_<model>/auto_lang_ann.npy       the same segments, embedded by other sentence models
    statistics.yaml, .hydra/             written for CALVIN's own loader and simulator

ABCD has 2.4 million files in one folder. So opening neither lists the folder nor looks for each frame.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from rfedge.data.collection.dataset_records import CALVIN_HZ, COLLECTION_RECORD, read_conventions
from rfedge.data.frames import FRAME_KEYS, Array, check_frame_array, frame_name, frame_number, read_frame, write_frame
from rfedge.data.object_file import read_object_file, write_object_file
from rfedge.data.scene.scenes import SceneFrames, contradicted_by, read_scenes
from rfedge.data.statistics import DatasetStatistics, evenly_spaced
from rfedge.errors import DatasetError
from rfedge.io.atomic import atomic_file
from rfedge.io.disk import read_json
from rfedge.robot.conventions import Conventions

logger = logging.getLogger(__name__)
LANGUAGE_FILE: Final = "lang_annotations/auto_lang_ann.npy"
EPISODES_FILE: Final = "ep_start_end_ids.npy"
SPLITS: Final = ("training", "validation")
_CALVINS_OWN: Final = Conventions(control_hz=CALVIN_HZ)
# Frames that opening looks for.
_NUM_PROBED: Final = 4096


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
        segments: the language segments, in the order of the annotation file; they may overlap and repeat.
        episodes: first and last frame of each episode, both inclusive; empty when the split does not say.
        scenes: frames of each scene; empty when the split does not say.
        conventions: control rate and camera geometry of the recording.
    """

    folder: Path
    segments: tuple[Segment, ...]
    episodes: tuple[tuple[int, int], ...] = ()
    scenes: tuple[SceneFrames, ...] = ()
    conventions: Conventions = _CALVINS_OWN

    @classmethod
    def open(cls, path: Path, *, split: str | None = None) -> CalvinDataset:
        """Read the index files of a root (its `split`, by default training) or a split folder, and look for frames they
        name.

        Raises DatasetError where something is missing or damaged, or the collection was interrupted; of a large split some
        thousand frames are looked for, the others when they are read.
        """
        folder = find_split(path, split)
        refuse_interrupted_collection(path, folder)
        if not _has_frames(folder):
            expected = f"files named {frame_name(0)}"
            remedy = "Give the folder that holds the frames, or make one with `rfedge demos --output`."
            raise DatasetError(f"dataset {folder}", got="no frame files", expected=expected, remedy=remedy)
        segments = read_segments(find_language_file(folder))
        dataset = cls(folder, segments, read_episodes(folder), read_scenes(folder), read_conventions(folder))
        if (configured := contradicted_by(folder, dataset.scenes)) is not None:
            logger.warning("%s: scene_info.npy does not name scene %s, the recorded configuration does", folder, configured)
        dataset._probe()
        return dataset

    def _probe(self) -> None:
        """Look for all frames of a small dataset, or for the ends of segments spread over a large one."""
        probed, is_small = self.segments, sum(segment.num_frames for segment in self.segments) <= _NUM_PROBED
        if not is_small:
            probed = tuple(self.segments[index] for index in evenly_spaced(len(self.segments), _NUM_PROBED // 2))
        for segment in probed:
            for number in range(segment.start, segment.end + 1) if is_small else (segment.start, segment.end):
                if not self.frame_path(number).is_file():
                    got = f"no {frame_name(number)}"
                    expected = f"frames {segment.start} to {segment.end} of {segment.task!r}"
                    remedy = "Copy the dataset again, all of it; `rfedge demos inspect` lists what is missing."
                    raise DatasetError(f"dataset {self.folder}", got=got, expected=expected, remedy=remedy)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks shown, sorted."""
        return tuple(sorted({segment.task for segment in self.segments}))

    @property
    def instructions(self) -> tuple[str, ...]:
        """Every instruction once, sorted."""
        return tuple(sorted({segment.instruction for segment in self.segments}))

    def scene_of(self, frame: int) -> str | None:
        """Return the scene, "A" to "D", that a frame shows, or None when the split does not say."""
        return next((scene.scene for scene in self.scenes if scene.holds(frame)), None)

    def frame_path(self, number: int) -> Path:
        return self.folder / frame_name(number)

    def frame(self, number: int, keys: Iterable[str] = FRAME_KEYS) -> dict[str, Array]:
        """Load the arrays `keys` of one frame (`rfedge.data.frames`).

        Raises DatasetError where it is missing, damaged or not of this robot.
        """
        return read_frame(self.frame_path(number), keys)

    def frame_numbers(self) -> list[int]:
        """Every frame of every segment once, ascending (CALVIN's segments may overlap)."""
        spans = (range(segment.start, segment.end + 1) for segment in self.segments)
        return sorted(set(itertools.chain.from_iterable(spans)))

    def statistics(self) -> DatasetStatistics:
        """Read the numbers of all segments; an overlapped frame counts in each of its segments."""
        statistics = DatasetStatistics()
        keys = ("robot_obs", "scene_obs", "rel_actions")
        for segment in self.segments:
            rows = [self.frame(number, keys) for number in range(segment.start, segment.end + 1)]
            statistics.add_rows(segment.task, rows)
        return statistics


def find_split(path: Path, split: str | None = None) -> Path:
    """Return the split folder that `path` is or holds; raises DatasetError where there is none."""
    if not path.is_dir():
        got = "a file" if path.exists() else "no folder"
        expected = "a CALVIN dataset" if not path.exists() else "the folder of a CALVIN dataset"
        remedy = "Make one with `rfedge demos --output`, or convert one with `rfedge demos convert`."
        raise DatasetError(f"dataset {path}", got=got, expected=expected, remedy=remedy)
    if split is not None and split not in SPLITS:
        raise DatasetError("split", got=repr(split), expected=" or ".join(SPLITS), remedy="Choose one of them.")
    if split is None and not (path / SPLITS[0]).is_dir():
        # A root that was unpacked one level too deep, or only its validation part, is a frequent slip: name the way out.
        folders = [] if _has_frames(path) else [entry for entry in sorted(path.iterdir()) if entry.is_dir()]
        inner = [entry for entry in folders if (entry / SPLITS[0]).is_dir() or entry.name in SPLITS]
        if not inner:
            return path
        expected = "a training split"
        remedy = f"Give {inner[0]}."
        raise DatasetError(f"dataset {path}", got=f"a folder that holds {inner[0].name}/", expected=expected, remedy=remedy)
    folder = path / (split or SPLITS[0])
    if folder.is_dir():
        return folder
    if path.name == split:
        return path
    raise DatasetError(
        f"dataset {path}", got=f"no {split}/ folder", expected=f"a root with {split}/", remedy="Give the root."
    )


def find_language_file(folder: Path) -> Path:
    """Return the annotation file of a split; all `lang_<model>` folders hold the same instructions."""
    path = folder / LANGUAGE_FILE
    if path.is_file():
        return path
    for other in sorted(folder.glob(f"lang_*/{path.name}")):
        return other
    remedy = "Use a split with language, or copy the file again."
    raise DatasetError(f"dataset {folder}", got="no language annotations", expected=LANGUAGE_FILE, remedy=remedy)


def read_episodes(folder: Path) -> tuple[tuple[int, int], ...]:
    """Return the bounds in ep_start_end_ids.npy, in its order; empty when there is no such file."""
    path = folder / EPISODES_FILE
    if not path.is_file():
        return ()
    bounds = read_index_array(path)
    if bounds.ndim != 2 or bounds.shape[1] != 2 or bounds.dtype.kind not in "iu" or (bounds[:, 0] > bounds[:, 1]).any():
        expected = "integers (N, 2), first <= last frame of each episode"
        remedy = "Copy it again."
        raise DatasetError(f"file {path}", got=f"{bounds.dtype} {bounds.shape}", expected=expected, remedy=remedy)
    return tuple((int(first), int(last)) for first, last in bounds)


def read_index_array(path: Path) -> Array:
    """Return the integers in an index file."""
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(
            f"file {path}", got=f"an unreadable file ({error})", expected="an integer array", remedy="Copy it again."
        ) from None


def refuse_interrupted_collection(path: Path, folder: Path) -> None:
    """Raise DatasetError when a collection into `path`, or above its split `folder`, was not finished."""
    for record in {path / COLLECTION_RECORD, folder.parent / COLLECTION_RECORD}:
        if not record.is_file():
            continue
        try:
            complete = bool(read_json(record)["complete"])
        except (ValueError, KeyError, TypeError):
            raise DatasetError(
                f"file {record}", got="unreadable text", expected="a collection record", remedy="Collect again."
            ) from None
        if not complete:
            remedy = "Run the same `rfedge demos` command again: it goes on where it stopped."
            raise DatasetError(f"dataset {path}", got="an interrupted collection", expected="a finished one", remedy=remedy)


def _has_frames(folder: Path) -> bool:
    # Scanning stops at the first frame: of millions of files only the first block of names is read.
    with os.scandir(folder) as entries:
        return any(frame_number(entry.name) is not None for entry in entries)


def read_annotations(path: Path) -> tuple[tuple[Segment, ...], tuple[tuple[int, Segment], ...]]:
    """Return the segments of an annotation file, and (place in the file, segment) of those without an instruction."""
    content = read_object_file(path)
    try:
        language, bounds = content["language"], content["info"]["indx"]
        instructions, tasks = language["ann"], language["task"]
        rows = list(zip(bounds, tasks, instructions, strict=True))
        listed = [Segment(int(start), int(end), str(task), _words(text)) for (start, end), task, text in rows]
    except (KeyError, TypeError, ValueError) as error:
        expected = "language.ann, language.task and info.indx of one length"
        remedy = "Use CALVIN's auto_lang_ann.npy."
        raise DatasetError(f"file {path}", got=f"another structure ({error!r})", expected=expected, remedy=remedy) from None
    for segment in listed:
        if not 0 <= segment.start <= segment.end:
            raise DatasetError(f"file {path}", got=str(segment), expected="0 <= start <= end", remedy="Copy it again.")
    segments = tuple(segment for segment in listed if segment.instruction)
    if not segments:
        got = f"{len(listed)} segments, none with an instruction" if listed else "no segments"
        remedy = "Collect demonstrations with `rfedge demos`."
        raise DatasetError(f"file {path}", got=got, expected="at least one", remedy=remedy)
    blank = tuple((place, segment) for place, segment in enumerate(listed) if not segment.instruction)
    return segments, blank


def _words(text: object) -> str:
    """Return an annotation as it is read; "" for one without words, and for what is no text."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return text if isinstance(text, str) and text.strip() else ""


def read_segments(path: Path) -> tuple[Segment, ...]:
    """Return the segments of an annotation file that have an instruction; the others are named in a warning."""
    segments, blank = read_annotations(path)
    for place, segment in blank:
        logger.warning(
            "%s: segment %d (%s, frames %d to %d) has no instruction and is left out",
            path, place, segment.task, segment.start, segment.end,
        )  # fmt: skip
    return segments


# Width of the MiniLM sentence embeddings in CALVIN's own files.
_EMBEDDING_SIZE: Final = 384


def write_episode(folder: Path, first: int, frames: Mapping[str, Array]) -> int:
    """Check an episode, arrays stacked over T frames, write it as frames `first`, `first + 1`, ..., and return T."""
    subject = f"episode at frame {first}"
    missing = [key for key in FRAME_KEYS if key not in frames]
    if missing:
        raise DatasetError(subject, got=f"no {missing[0]!r}", expected=", ".join(FRAME_KEYS), remedy="Record all of them.")
    lengths = {key: len(frames[key]) for key in FRAME_KEYS}
    num_frames = lengths["rel_actions"]
    if set(lengths.values()) != {num_frames} or not num_frames:
        raise DatasetError(
            subject, got=f"lengths {lengths}", expected="one length of at least 1", remedy="Record all of them each step."
        )
    rows = [{key: frames[key][index] for key in FRAME_KEYS} for index in range(num_frames)]
    for index, row in enumerate(rows):
        for key, array in row.items():
            check_frame_array(f"{subject}, step {index}", key, array)
    folder.mkdir(parents=True, exist_ok=True)
    for index, row in enumerate(rows):
        write_frame(folder / frame_name(first + index), row)
    return num_frames


def write_index(
    folder: Path,
    segments: Sequence[Segment],
    statistics: DatasetStatistics,
    *,
    scene: str | Mapping[str, tuple[int, int]] | None,
    episodes: Sequence[tuple[int, int]] | None = None,
) -> None:
    """Write the index files of a split whose frames are all there; each appears whole or not at all.

    `scene` is one letter, or letter -> first and last frame; without `episodes` every segment is one.
    """
    bounds = np.array(episodes or [(segment.start, segment.end) for segment in segments], dtype=np.int64)
    if isinstance(scene, str):
        scene = {scene: (int(bounds[:, 0].min()), int(bounds[:, 1].max()))}
    arrays = {"ep_start_end_ids.npy": bounds, "ep_lens.npy": bounds[:, 1] - bounds[:, 0] + 1}
    for name, array in arrays.items():
        with atomic_file(folder / name) as path, path.open("wb") as file:
            np.save(file, array, allow_pickle=False)
    if scene is not None:
        with atomic_file(folder / "scene_info.npy") as path:
            write_object_file(path, {f"calvin_scene_{letter}": [first, last] for letter, (first, last) in scene.items()})
    with atomic_file(folder / "statistics.yaml") as path:
        path.write_text(statistics.to_yaml())
    # A pickle spells a text once per object, not once per value: intern them, so that equal datasets are equal bytes.
    annotations = {
        "language": {
            "ann": [sys.intern(segment.instruction) for segment in segments],
            "task": [sys.intern(segment.task) for segment in segments],
            "emb": np.zeros((len(segments), 1, _EMBEDDING_SIZE), dtype=np.float32),
        },
        "info": {"episodes": [], "indx": [(segment.start, segment.end) for segment in segments]},
    }
    with atomic_file(folder / LANGUAGE_FILE) as path:  # last: a split without it is refused by the reader
        write_object_file(path, annotations)
