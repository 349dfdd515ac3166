"""Every frame of a dataset in a few memory-mapped arrays: a window of 12 npz files costs 12 openings and 24 inflated images.

The cache appears whole or not at all, and is rebuilt when a frame file or the annotations change.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rfedge.data.calvin import CalvinDataset
from rfedge.data.frames import FRAME_SHAPES, Array, frame_name
from rfedge.data.robot import refuse_another_robot
from rfedge.errors import DatasetError
from rfedge.io.atomic import atomic_directory
from rfedge.io.disk import read_json
from rfedge.jobs.progress import Count

CACHE_FOLDER: Final = ".frame-cache"
_SCHEMA_VERSION: Final = 3
_RECORD: Final = "cache.json"
_DTYPES: Final = {
    "rgb_static": np.uint8,
    "rgb_gripper": np.uint8,
    "rel_actions": np.float32,
    "robot_obs": np.float32,
    "scene_obs": np.float32,
}


@dataclass(frozen=True, slots=True, eq=False)
class FrameCache:
    """Frames of one dataset by row; rows follow `numbers`.

    Attributes:
        numbers: int64 (N,) frame numbers, ascending.
        rgb_static: uint8 (N, 200, 200, 3), memory-mapped, read-only.
        rgb_gripper: uint8 (N, 84, 84, 3), memory-mapped, read-only.
        rel_actions: float32 (N, 7).
        robot_obs: float32 (N, 15).
        scene_obs: float32 (N, 24), what questions about the scene are made of; no policy sees it.
        content_sha256: hex, over the segments and all of the above; names the data wherever it was copied to.
    """

    numbers: npt.NDArray[np.int64]
    rgb_static: npt.NDArray[np.uint8]
    rgb_gripper: npt.NDArray[np.uint8]
    rel_actions: npt.NDArray[np.float32]
    robot_obs: npt.NDArray[np.float32]
    scene_obs: npt.NDArray[np.float32]
    content_sha256: str

    @classmethod
    def open(cls, dataset: CalvinDataset, *, folder: Path | None = None, on_frame: Count | None = None) -> FrameCache:
        """Open the cache of `dataset` in `folder`, by default in the split, building it where there is none of these frames.

        Raises:
            DatasetError: a frame is damaged.
            ArtifactError: the cache cannot be written.
        """
        folder = folder or dataset.folder / CACHE_FOLDER
        fingerprint = dataset_fingerprint(dataset)
        if _recorded(folder, "fingerprint") != fingerprint:
            _build(dataset, folder, fingerprint, on_frame)
        modes: Any = {key: "r" if dtype is np.uint8 else None for key, dtype in _DTYPES.items()}  # images stay on the disk
        arrays: dict[str, Any] = {key: np.load(folder / f"{key}.npy", mmap_mode=mode) for key, mode in modes.items()}
        content = _recorded(folder, "content_sha256") or ""
        return cls(numbers=np.load(folder / "numbers.npy"), **arrays, content_sha256=content)

    def row(self, number: int) -> int:
        """Row of a frame number; the frames of one segment are consecutive rows."""
        return int(np.searchsorted(self.numbers, number))


def dataset_fingerprint(dataset: CalvinDataset) -> str:
    """Return a sha256 over the segments and over name, size and modification time of every frame they use."""
    digest = hashlib.sha256(f"frame-cache {_SCHEMA_VERSION}\n".encode())
    for segment in dataset.segments:
        digest.update(f"{segment}\n".encode())
    for number in dataset.frame_numbers():
        path = dataset.frame_path(number)
        try:
            status = path.stat()
        except FileNotFoundError:
            remedy = "Copy the dataset again, all of it; `rfedge demos inspect` lists what is missing."
            raise DatasetError(f"frame {path}", got="no file", expected="an npz file", remedy=remedy) from None
        digest.update(f"{number} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _recorded(folder: Path, name: str) -> str | None:
    try:
        return str(read_json(folder / _RECORD)[name])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _build(dataset: CalvinDataset, folder: Path, fingerprint: str, on_frame: Count | None) -> None:
    numbers = dataset.frame_numbers()
    digest = hashlib.sha256("\n".join(str(segment) for segment in dataset.segments).encode())
    with atomic_directory(folder, overwrite=True, shared=True) as temporary:
        arrays: dict[str, Array] = {
            key: np.lib.format.open_memmap(
                temporary / f"{key}.npy", mode="w+", dtype=dtype, shape=(len(numbers), *FRAME_SHAPES[key])
            )
            for key, dtype in _DTYPES.items()
        }
        for row, number in enumerate(numbers):
            frame = dataset.frame(number, tuple(_DTYPES))
            refuse_another_robot(frame_name(number), frame["robot_obs"])
            for key, array in arrays.items():
                array[row] = frame[key]
                digest.update(array[row].tobytes())
            if on_frame is not None:
                on_frame(row + 1, len(numbers))
        del array, arrays  # closing the maps hands their last pages to the files
        np.save(temporary / "numbers.npy", np.array(numbers, dtype=np.int64))
        record = {
            "schema_version": _SCHEMA_VERSION,
            "fingerprint": fingerprint,
            "content_sha256": digest.hexdigest(),
            "num_frames": len(numbers),
        }
        (temporary / _RECORD).write_text(json.dumps(record, indent=2) + "\n")
