"""What a search has measured so far, one JSON document a line, so that a killed search goes on where it stopped.

The file's name is a hash of everything that the numbers depend on: another graph, other frames or other options have
another file, and nothing has to be compared line by line.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from rfedge.bundle.artifact import hash_file
from rfedge.export.passes.graph_files import graph_files

Inputs = Mapping[str, npt.NDArray[Any]]


def search_key(
    graphs: Sequence[Path], calibration: Iterable[Inputs], episodes: Iterable[Iterable[Inputs]], options: Mapping[str, Any]
) -> str:
    """Return 32 hex digits that name a search.

    Args:
        graphs: backbone in fp32 and head; weights beside them count.
        episodes: that the actions are compared on.
        options: how int8 is made.
    """
    digest = hashlib.sha256(json.dumps({**options, "onnxruntime": onnxruntime.__version__}).encode())
    for graph in graphs:
        for path in graph_files(graph):
            digest.update(hash_file(path).encode())
    for name, frames in [("calibration", list(calibration)), *(("episode", list(episode)) for episode in episodes)]:
        digest.update(f"{name} {len(frames)}".encode())
        for frame in frames:
            for key in sorted(frame):
                array = np.ascontiguousarray(frame[key])
                digest.update(f"{key} {array.dtype} {array.shape}".encode())
                digest.update(array.tobytes())
    return digest.hexdigest()[:32]


class MeasurementCache:
    """Measurements by the fields that they depend on, appended to the file at `path` and synced one by one.

    A line that a kill cut short is dropped: it is measured again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Any] = {}
        self.num_reused = 0
        if path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            for line in whole.splitlines():
                document = json.loads(line)
                self._found[_key(document["of"])] = document["value"]
            if whole != content:
                with path.open("r+b") as file:
                    file.truncate(len(whole))
        path.parent.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self._found)

    def get(self, **of: Any) -> Any:
        """Return what was measured of these fields, or None."""
        value = self._found.get(_key(of))
        self.num_reused += value is not None
        return value

    def put(self, value: Any, **of: Any) -> None:
        """Remember a measurement; it is on the disk when this returns."""
        self._found[_key(of)] = value
        with self._path.open("a") as file:
            file.write(json.dumps({"of": of, "value": value}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _key(of: Mapping[str, Any]) -> str:
    return json.dumps(of, sort_keys=True)
