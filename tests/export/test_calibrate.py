"""Which frames int8 is calibrated on: balance, and that no synthetic frame passes for a demonstration."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from rfedge.data import CalvinDataset
from rfedge.data.calvin import Segment, write_episode, write_index
from rfedge.data.statistics import DatasetStatistics
from rfedge.errors import DatasetError
from rfedge.export.calibrate import choose_calibration_frames, gripper_changes
from tests.errors import raises
from tests.synthetic_demonstrations import NEUTRAL_STATE

NUM_FRAMES = 18


def write_uneven(root: Path, pictures: np.ndarray | None = None, *, grasps: bool = True) -> CalvinDataset:
    """Three tasks of 5, 2 and 3 episodes; the gripper closes at frame 4 and opens at frame 13 of every episode."""
    rng = np.random.default_rng(0)
    segments, statistics, first = [], DatasetStatistics(), 0
    for task, episodes in (("open_drawer", 5), ("close_drawer", 2), ("turn_on_led", 3)):
        for _ in range(episodes):
            actions = np.zeros((NUM_FRAMES, 7))
            actions[:, 6] = 1.0
            if grasps:
                actions[4:13, 6] = -1.0
            static = np.zeros((NUM_FRAMES, 200, 200, 3), np.uint8)
            static[:, 50:150, 50:150] = rng.integers(60, 200, (NUM_FRAMES, 1, 1, 3))
            frames = {
                "rgb_static": static if pictures is None else pictures,
                "rgb_gripper": np.zeros((NUM_FRAMES, 84, 84, 3), np.uint8),
                "robot_obs": np.tile(NEUTRAL_STATE, (NUM_FRAMES, 1)),
                "scene_obs": np.zeros((NUM_FRAMES, 24)),
                "actions": actions,
                "rel_actions": actions,
            }
            write_episode(root / "training", first, frames)
            segments.append(Segment(first, first + NUM_FRAMES - 1, task, task.replace("_", " ")))
            statistics.add(task, frames)
            first += NUM_FRAMES
    write_index(root / "training", segments, statistics, scene="D")
    return CalvinDataset.open(root)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> CalvinDataset:
    return write_uneven(tmp_path_factory.mktemp("uneven"))


def spread(counts: Iterable[int]) -> int:
    counts = list(counts)
    return max(counts) - min(counts)


@pytest.mark.parametrize("num_frames", [12, 31])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tasks_episodes_phases_and_gripper_changes_are_each_within_one(
    uneven: CalvinDataset, num_frames: int, seed: int
) -> None:
    chosen = choose_calibration_frames(uneven, num_frames=num_frames, rng=np.random.default_rng(seed))
    assert len(set(chosen)) == num_frames
    tasks = Counter(uneven.segments[index].task for index, _ in chosen)
    assert len(tasks) == 3
    assert spread(tasks.values()) <= 1
    for task in tasks:
        indices = [index for index, segment in enumerate(uneven.segments) if segment.task == task]
        used = Counter(index for index, _ in chosen)
        assert spread(used[index] for index in indices) <= 1
    steps = [frame - uneven.segments[index].start for index, frame in chosen]
    closing, opening = steps.count(4), steps.count(13)
    assert abs(closing - opening) <= 1
    thirds = Counter(step // 6 for step in steps if step not in (4, 13))
    assert len(thirds) == 3
    assert spread([*thirds.values(), closing + opening]) <= 1


def test_gripper_changes_are_the_frames_whose_command_is_new(uneven: CalvinDataset) -> None:
    segment = uneven.segments[1]
    assert gripper_changes(uneven, segment) == {"closing": [segment.start + 4], "opening": [segment.start + 13]}


def test_without_gripper_changes_the_thirds_share_the_frames(tmp_path: Path) -> None:
    dataset = write_uneven(tmp_path, grasps=False)
    chosen = choose_calibration_frames(dataset, num_frames=30, rng=np.random.default_rng(0))
    thirds = Counter((frame - dataset.segments[index].start) // 6 for index, frame in chosen)
    assert thirds == {0: 10, 1: 10, 2: 10}


def test_more_frames_than_there_are_gives_all_of_them_once(uneven: CalvinDataset) -> None:
    total = 10 * NUM_FRAMES
    chosen = choose_calibration_frames(uneven, num_frames=total + 5, rng=np.random.default_rng(0))
    assert len(chosen) == len(set(chosen)) == total


def test_the_same_seed_chooses_the_same_frames(uneven: CalvinDataset) -> None:
    first, again, other = (
        choose_calibration_frames(uneven, num_frames=12, rng=np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("kind", "got"), [("equal", "12 frames with one and the same picture"), ("noise", "frames of random bytes")]
)
def test_synthetic_frames_are_refused(kind: str, got: str, tmp_path: Path) -> None:
    shape = (NUM_FRAMES, 200, 200, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    dataset = write_uneven(tmp_path, np.zeros(shape, np.uint8) if kind == "equal" else noise)
    with raises(DatasetError, got=got, expected="pictures of a camera (synthetic calibration is refused)"):
        choose_calibration_frames(dataset, num_frames=12, rng=np.random.default_rng(0))
