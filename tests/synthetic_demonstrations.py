"""Small demonstrations for tests: a bright square moves, and the actions follow it."""

from pathlib import Path

import numpy as np

from rfedge.data.calvin import Segment, write_episode, write_index
from rfedge.data.statistics import DatasetStatistics

# CALVIN's robot_obs at the start of an episode, with the gripper half open.
NEUTRAL_STATE = np.array(
    (0.026, -0.231, 0.571, 3.09, -0.029, 1.5, 0.04, -1.218, 1.04, 2.12, -2.342, -0.87, 1.641, 0.553, 1.0)
)
TASKS = {"open_drawer": "pull the drawer open", "close_drawer": "push the drawer shut"}


def write_demonstrations(root: Path, *, episodes_per_task: int = 3, num_frames: int = 16, seed: int = 0) -> Path:
    """Write `root`/training in CALVIN's format and return `root`."""
    rng = np.random.default_rng(seed)
    folder = root / "training"
    segments, statistics, first = [], DatasetStatistics(), 0
    for task, instruction in TASKS.items():
        direction = 1.0 if task == "open_drawer" else -1.0
        for _ in range(episodes_per_task):
            static = rng.integers(0, 60, (num_frames, 200, 200, 3), np.uint8)
            gripper = rng.integers(0, 60, (num_frames, 84, 84, 3), np.uint8)
            actions = np.zeros((num_frames, 7))
            for step in range(num_frames):
                corner = 40 + int(direction * 2 * step) + int(rng.integers(8))
                static[step, corner : corner + 30, 80:110] = 240
                gripper[step, 30 : 30 + step, 20:60] = 200
                actions[step, 1] = -direction * (0.3 + 0.5 * step / num_frames)
                actions[step, 6] = 1.0 if step < num_frames // 2 else -1.0
            frames = {
                "rgb_static": static,
                "rgb_gripper": gripper,
                "robot_obs": NEUTRAL_STATE + 0.01 * rng.normal(size=(num_frames, 15)),
                "scene_obs": rng.normal(size=(num_frames, 24)),
                "actions": actions,
                "rel_actions": actions,
            }
            write_episode(folder, first, frames)
            segments.append(Segment(first, first + num_frames - 1, task, instruction))
            statistics.add(task, frames)
            first += num_frames
    write_index(folder, segments, statistics, scene="D")
    return root
