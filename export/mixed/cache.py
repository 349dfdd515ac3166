"""What a search has measured so far, one JSON document a line, so that a killed search goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from rfedge.bundle.artifact import hash_file
from rfedge.export.passes.graph_files import graph_files
from rfedge.recurrence import Arrays


def search_key(
    graphs: Sequence[Path], calibration: Iterable[Arrays], episodes: Iterable[Iterable[Arrays]], options: Mapping[str, Any]
) -> str:
    """Return 32 hex digits of everything that measurements depend on; another search has another file."""
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
    """Measurements by the fields that they depend on, appended and synced one by one; a line that a kill cut is dropped."""

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
        value = self._found.get(_key(of))
        self.num_reused += value is not None
        return value

    def put(self, value: Any, **of: Any) -> None:
        self._found[_key(of)] = value
        with self._path.open("a") as file:
            file.write(json.dumps({"of": of, "value": value}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _key(of: Mapping[str, Any]) -> str:
    return json.dumps(of, sort_keys=True)
