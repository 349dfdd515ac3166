"""Statistics of a dataset: spread of the states, bounds of the actions, episodes per task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rfedge.data.frames import FRAME_SHAPES, Array, Float64Array

# CALVIN divides by the deviation; a joint that never moves must not become a division by zero.
_SMALLEST_DEVIATION = 1e-6


def evenly_spaced(total: int, count: int) -> list[int]:
    """Return at most `count` of the numbers below `total`."""
    spaced: list[int] = np.linspace(0, total - 1, min(count, total)).round().astype(np.int64).tolist()
    return spaced


class RunningMoments:
    """Mean, deviation and bounds, (size,) each, of rows that come in pieces, without keeping the rows (Chan's update)."""

    def __init__(self, size: int) -> None:
        self.num_rows = 0
        self.mean: Float64Array = np.zeros(size)
        self._squares: Float64Array = np.zeros(size)
        self.minimum: Float64Array = np.full(size, np.inf)
        self.maximum: Float64Array = np.full(size, -np.inf)

    def add(self, rows: Array) -> None:
        """Add float (n, size) rows."""
        rows = np.asarray(rows, dtype=np.float64)
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        squares = np.square(rows - mean).sum(axis=0)
        total = self.num_rows + len(rows)
        delta = mean - self.mean
        self._squares = self._squares + squares + np.square(delta) * (self.num_rows * len(rows) / total)
        self.mean = self.mean + delta * (len(rows) / total)
        self.num_rows = total
        self.minimum = np.minimum(self.minimum, rows.min(axis=0))
        self.maximum = np.maximum(self.maximum, rows.max(axis=0))

    @property
    def deviation(self) -> Float64Array:
        """Population standard deviation (size,)."""
        spread: Float64Array = np.sqrt(self._squares / max(self.num_rows, 1))
        return spread


class DatasetStatistics:
    """Spread of a dataset's numbers, which are added one episode at a time.

    Attributes:
        moments: of the rows of "robot_obs" (15,), "scene_obs" (24,) and "rel_actions" (7,), units as in `rfedge.messages`.
        episodes_per_task: task -> language segments.
    """

    def __init__(self) -> None:
        self.moments = {key: RunningMoments(*FRAME_SHAPES[key]) for key in ("robot_obs", "scene_obs", "rel_actions")}
        self.episodes_per_task: Counter[str] = Counter()

    def add(self, task: str, frames: Mapping[str, Array]) -> None:
        """Add one episode: `robot_obs` (T, 15), `scene_obs` (T, 24), `rel_actions` (T, 7)."""
        for key, moments in self.moments.items():
            moments.add(frames[key])
        self.episodes_per_task[task] += 1

    def add_rows(self, task: str, rows: Sequence[Mapping[str, Array]]) -> None:
        self.add(task, {key: np.stack([row[key] for row in rows]) for key in self.moments})

    def to_yaml(self) -> str:
        """Return CALVIN's `statistics.yaml`: transforms that normalise the states, and the bounds of the actions."""
        actions = self.moments["rel_actions"]
        lines = [f"# {self.episodes_per_task.total()} episodes, {actions.num_rows} frames"]
        for key in ("robot_obs", "scene_obs"):
            lines += [
                f"{key}:",
                "- _target_: calvin_agent.utils.transforms.NormalizeVector",
                f"  mean: {_flow(self.moments[key].mean)}",
                f"  std: {_flow(np.maximum(self.moments[key].deviation, _SMALLEST_DEVIATION))}",
            ]
        lines += [f"act_max_bound: {_flow(actions.maximum)}", f"act_min_bound: {_flow(actions.minimum)}"]
        return "\n".join(lines) + "\n"


def _flow(values: Iterable[float]) -> str:
    # Fixed point: YAML 1.1 reads "1e-06" as text, because it wants a point before the exponent.
    return "[" + ", ".join(f"{float(value):.8f}" for value in values) + "]"
