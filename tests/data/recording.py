"""A recorder that needs no simulator: small random episodes of 3 to 6 frames, one in three a failure."""

from dataclasses import dataclass

import numpy as np

from rfedge.data.collection.collect import SegmentRecord
from rfedge.data.frames import Array


@dataclass(frozen=True)
class SyntheticEpisode:
    """One task, or a chain of `lengths` frames each."""

    instruction: str
    success: bool
    frames: dict[str, Array]
    tasks: tuple[str, ...] = ("do",)
    lengths: tuple[int, ...] = ()

    @property
    def segments(self) -> tuple[SegmentRecord, ...]:
        lengths = self.lengths or (len(self.frames["rel_actions"]),)
        return tuple(
            SegmentRecord(task, self.instruction, length, self.success)
            for task, length in zip(self.tasks, lengths, strict=True)
        )


def episode_frames(num_frames: int, rng: np.random.Generator) -> dict[str, Array]:
    rel_actions = rng.uniform(-1, 1, (num_frames, 7))
    rel_actions[:, 6] = np.where(np.arange(num_frames) < num_frames // 2, 1.0, -1.0)
    return {
        "rgb_static": rng.integers(0, 256, (num_frames, 200, 200, 3), np.uint8),
        "rgb_gripper": rng.integers(0, 256, (num_frames, 84, 84, 3), np.uint8),
        "robot_obs": rng.normal(size=(num_frames, 15)),
        "scene_obs": rng.normal(size=(num_frames, 24)),
        "actions": rel_actions.copy(),
        "rel_actions": rel_actions,
    }


def record(task: str, seed: int) -> SyntheticEpisode:
    rng = np.random.default_rng(seed)
    success = bool(rng.random() > 1 / 3)
    return SyntheticEpisode(f"do {task}", success, episode_frames(int(rng.integers(3, 7)), rng), (task,))


def record_failure(task: str, seed: int) -> SyntheticEpisode:
    return SyntheticEpisode(
        f"do {task}", success=False, frames=episode_frames(3, np.random.default_rng(seed)), tasks=(task,)
    )
