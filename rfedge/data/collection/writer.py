"""Writes a split in CALVIN's format, the files that `rfedge.data.calvin` reads, and `ep_lens.npy` and `statistics.yaml`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from rfedge.data.calvin import LANGUAGE_FILE, Segment
from rfedge.data.frames import FRAME_KEYS, Array, check_frame_array, frame_name, write_frame
from rfedge.data.object_file import write_object_file
from rfedge.data.statistics import DatasetStatistics
from rfedge.errors import DatasetError
from rfedge.io.atomic import atomic_file

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
