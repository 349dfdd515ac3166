"""What a dataset holds, in numbers: spread of the states, bounds of the actions, episodes per task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rfedge.data.frames import FRAME_SHAPES, Array

FloatArray = npt.NDArray[np.float64]
# CALVIN divides by the deviation; a joint that never moves must not become a division by zero.
_SMALLEST_DEVIATION = 1e-6


class RunningMoments:
    """Mean and standard deviation of rows that come in pieces, without keeping the rows (Chan's update)."""

    def __init__(self, size: int) -> None:
        self.num_rows = 0
        self.mean: FloatArray = np.zeros(size)
        self._squares: FloatArray = np.zeros(size)

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

    @property
    def deviation(self) -> FloatArray:
        """Population standard deviation (size,)."""
        spread: FloatArray = np.sqrt(self._squares / max(self.num_rows, 1))
        return spread


@dataclass(frozen=True, slots=True, eq=False)
class DatasetStatistics:
    """Numbers of one split.

    Attributes:
        episodes_per_task: task -> language segments.
        robot_obs_mean, robot_obs_deviation: float64 (15,), units as in `rfedge.messages`.
        scene_obs_mean, scene_obs_deviation: float64 (24,).
        action_minimum, action_maximum: float64 (7,) of rel_actions, normalised units.
    """

    num_frames: int
    num_episodes: int
    episodes_per_task: Mapping[str, int]
    robot_obs_mean: FloatArray
    robot_obs_deviation: FloatArray
    scene_obs_mean: FloatArray
    scene_obs_deviation: FloatArray
    action_minimum: FloatArray
    action_maximum: FloatArray

    def to_yaml(self) -> str:
        """Return CALVIN's `statistics.yaml`: transforms that normalise the states, and the bounds of the actions."""
        lines = [f"# {self.num_episodes} episodes, {self.num_frames} frames"]
        for key, mean, deviation in (
            ("robot_obs", self.robot_obs_mean, self.robot_obs_deviation),
            ("scene_obs", self.scene_obs_mean, self.scene_obs_deviation),
        ):
            lines += [
                f"{key}:",
                "- _target_: calvin_agent.utils.transforms.NormalizeVector",
                f"  mean: {_flow(mean)}",
                f"  std: {_flow(np.maximum(deviation, _SMALLEST_DEVIATION))}",
            ]
        lines += [f"act_max_bound: {_flow(self.action_maximum)}", f"act_min_bound: {_flow(self.action_minimum)}"]
        return "\n".join(lines) + "\n"


def _flow(values: Iterable[float]) -> str:
    # Fixed point: YAML 1.1 reads "1e-06" as text, because it wants a point before the exponent.
    return "[" + ", ".join(f"{float(value):.8f}" for value in values) + "]"


@dataclass(slots=True)
class StatisticsBuilder:
    """Collects the numbers one episode at a time."""

    _robot: RunningMoments = field(default_factory=lambda: RunningMoments(FRAME_SHAPES["robot_obs"][0]))
    _scene: RunningMoments = field(default_factory=lambda: RunningMoments(FRAME_SHAPES["scene_obs"][0]))
    _minimum: FloatArray = field(default_factory=lambda: np.full(FRAME_SHAPES["rel_actions"], np.inf))
    _maximum: FloatArray = field(default_factory=lambda: np.full(FRAME_SHAPES["rel_actions"], -np.inf))
    _tasks: Counter[str] = field(default_factory=Counter)

    def add(self, task: str, frames: Mapping[str, Array]) -> None:
        """Add one episode: `robot_obs` (T, 15), `scene_obs` (T, 24), `rel_actions` (T, 7)."""
        self._robot.add(frames["robot_obs"])
        self._scene.add(frames["scene_obs"])
        self._minimum = np.minimum(self._minimum, frames["rel_actions"].min(axis=0))
        self._maximum = np.maximum(self._maximum, frames["rel_actions"].max(axis=0))
        self._tasks[task] += 1

    def add_rows(self, task: str, rows: Sequence[Mapping[str, Array]]) -> None:
        """Add one episode given frame by frame."""
        self.add(task, {key: np.stack([row[key] for row in rows]) for key in ("robot_obs", "scene_obs", "rel_actions")})

    def result(self) -> DatasetStatistics:
        """Return the numbers of everything added so far."""
        return DatasetStatistics(
            num_frames=self._robot.num_rows,
            num_episodes=self._tasks.total(),
            episodes_per_task=dict(sorted(self._tasks.items())),
            robot_obs_mean=self._robot.mean,
            robot_obs_deviation=self._robot.deviation,
            scene_obs_mean=self._scene.mean,
            scene_obs_deviation=self._scene.deviation,
            action_minimum=self._minimum,
            action_maximum=self._maximum,
        )
