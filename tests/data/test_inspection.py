"""Every kind of damage is found, named and placed, and a sound dataset has none."""

import json
from pathlib import Path

import numpy as np
import pytest

from rfedge.data.frames import frame_name
from rfedge.data.inspection.report import InspectionReport, inspect_dataset
from rfedge.envs.tasks import TASKS
from rfedge.errors import ConfigError, DatasetError
from tests.data.released_split import SEGMENTS, release_frame, save_object, write_split
from tests.errors import raises

FRAME = 7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_split(tmp_path / "training", (0,))
    save_object(tmp_path / "training/scene_info.npy", {"calvin_scene_D": [0, 69]})
    return tmp_path / "training"


def inspect(folder: Path) -> InspectionReport:
    return inspect_dataset(folder, num_frames=None, task_names=TASKS)


def change_frame(folder: Path, **changes: np.ndarray | None) -> None:
    path = folder / frame_name(FRAME)
    with np.load(path) as archive:
        frame = {**archive, **changes}
    path.unlink()  # the files of a split share their content
    np.savez_compressed(path, **{key: value for key, value in frame.items() if value is not None})


def write_annotations(folder: Path, segments: list[tuple[int, int]], tasks: list[str] | None = None) -> None:
    for path in folder.glob("lang_*/auto_lang_ann.npy"):
        language = {
            "ann": ["pull it"] * len(segments),
            "task": tasks or ["open_drawer"] * len(segments),
            "emb": np.zeros((len(segments), 1, 8), np.float32),
        }
        save_object(path, {"language": language, "info": {"episodes": [], "indx": segments}})


def test_the_counts_of_a_sound_split(folder: Path) -> None:
    report = inspect(folder)
    assert report.findings == ()
    assert (report.num_frames, report.num_frames_checked, report.size_is_estimate) == (70, 70, False)
    assert report.size_bytes == sum(path.stat().st_size for path in folder.glob("episode_*.npz"))
    assert (report.num_episodes, report.num_segments, report.num_instructions) == (1, 2, 2)
    rows = [(row.task, row.segments, row.frames, row.shortest, row.median, row.longest) for row in report.tasks]
    assert rows == [("open_drawer", 1, 65, 65, 65.0, 65), ("push_red_block_left", 1, 36, 36, 36.0, 36)]
    states = np.stack([np.load(path)["robot_obs"] for path in sorted(folder.glob("episode_*.npz"))])
    spread = report.spreads["robot_obs"]
    np.testing.assert_allclose(spread.mean, states.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(spread.deviation, states.std(axis=0), atol=1e-12)
    np.testing.assert_array_equal(spread.minimum, states.min(axis=0))
    np.testing.assert_array_equal(spread.maximum, states.max(axis=0))
    # The file says mean 0.25 and deviation 0.75 for every element.
    moved = states.std(axis=0) > 1e-6
    expected = np.abs((states.mean(axis=0) - 0.25) / 0.75)[moved].max()
    assert report.against_statistics["robot_obs mean"] == pytest.approx(expected)


def test_the_report_does_not_depend_on_the_workers(folder: Path) -> None:
    change_frame(folder, rgb_static=np.zeros((200, 200, 3), np.uint8))
    assert inspect_dataset(folder, workers=2) == inspect_dataset(folder)


def test_a_sample_is_drawn_by_the_seed(folder: Path) -> None:
    reports = [inspect_dataset(folder, num_frames=9, seed=seed) for seed in (1, 1, 2)]
    assert reports[0] == reports[1] != reports[2]
    assert (reports[0].num_frames_checked, reports[0].size_is_estimate) == (9, True)


@pytest.mark.parametrize(
    ("changes", "what", "expected"),
    [
        ({"rel_actions": None}, "keys [", "'rel_actions'"),
        ({"robot_obs": np.zeros(8)}, "robot_obs: shape (8,)", "shape (15,)"),
        ({"rgb_gripper": np.zeros((84, 84, 3), np.float32)}, "rgb_gripper: dtype float32", "dtype uint8"),
        ({"scene_obs": np.full(24, np.inf)}, "scene_obs: NaN or Inf", "finite values"),
        ({"rel_actions": np.array([0, np.nan, 0, 0, 0, 0, 1.0])}, "rel_actions: NaN or Inf", "finite values"),
        ({"rel_actions": np.array([0, 1.5, 0, 0, 0, 0, 1.0])}, "rel_actions: pose up to 1.500", "[-1, 1]"),
        ({"actions": np.zeros(7)}, "gripper in actions: 0.0", "-1 (close) or 1 (open)"),
        ({"rel_actions": np.array([0, 0, 0, 0, 0, 0, 1.0])}, "off what actions and robot_obs give", "clip((actions"),
        ({"rgb_static": np.ones((200, 200, 3), np.uint8)}, "rgb_static: a black image", "a picture"),
        ({"rgb_gripper": np.full((84, 84, 3), 77, np.uint8)}, "rgb_gripper: every byte 77", "a picture"),
    ],
)
def test_a_damaged_frame_is_listed(folder: Path, changes: dict, what: str, expected: str) -> None:
    change_frame(folder, **changes)
    (finding,) = inspect(folder).findings
    assert finding.file == frame_name(FRAME)
    assert what in finding.what
    assert expected in finding.expected


@pytest.mark.parametrize(
    ("element", "value", "what"),
    [
        (10, 1.0, "joint 4 in robot_obs: 1.000 rad (another robot?)"),
        (0, 3.0, "tcp in robot_obs"),
        (2, 0.0, "tcp in robot_obs"),
        (6, 0.2, "gripper width in robot_obs: 0.200 m"),
    ],
)
def test_another_robot_is_suspected(folder: Path, element: int, value: float, what: str) -> None:
    robot_obs = release_frame(np.random.default_rng(0))["robot_obs"]
    robot_obs[element] = value
    change_frame(folder, robot_obs=robot_obs)
    findings = [finding for finding in inspect(folder).findings if "off what actions" not in finding.what]
    assert [finding.file for finding in findings] == [frame_name(FRAME)]
    assert what in findings[0].what


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_frame_is_listed(folder: Path, share: float) -> None:
    path = folder / frame_name(FRAME)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: int(share * len(content))])
    (finding,) = inspect(folder).findings
    assert finding.file == frame_name(FRAME)
    assert finding.what.startswith("an unreadable file")
    assert finding.expected == "a complete npz file"


def test_two_damages_of_one_frame_are_both_listed(folder: Path) -> None:
    change_frame(folder, scene_obs=np.zeros(3), rgb_static=np.zeros((2, 2), np.uint8))
    assert [finding.what for finding in inspect(folder).findings] == ["rgb_static: shape (2, 2)", "scene_obs: shape (3,)"]


def test_missing_frames_are_listed_by_runs(folder: Path) -> None:
    for number in (3, 4, 5, 60):
        (folder / frame_name(number)).unlink()
    findings = [(finding.file, finding.what) for finding in inspect(folder).findings]
    assert findings == [
        ("episode_0000003.npz to episode_0000005.npz", "3 missing files"),
        ("episode_0000060.npz", "no file"),
    ]


def test_segments_that_cannot_be(folder: Path) -> None:
    write_annotations(folder, [(0, 69), (60, 75), (0, 20)], ["open_drawer", "open_drawer", "make_coffee"])
    report = inspect(folder)
    found = [finding.what for finding in report.findings if finding.file.startswith("lang")]
    assert found == [
        "segment 0 (open_drawer, frames 0 to 69): 70 frames",
        "segment 1 (open_drawer, frames 60 to 75): outside of every episode",
    ]
    assert "1 tasks are none of CALVIN's 34, no simulator checks them: make_coffee" in report.notes


def test_embeddings_of_another_number_of_segments(folder: Path) -> None:
    language = {"ann": ["a"], "task": [SEGMENTS[0][0]], "emb": np.zeros((3, 1, 8), np.float32)}
    save_object(folder / "lang_clip_resnet50/auto_lang_ann.npy", {"language": language, "info": {"indx": [(0, 5)]}})
    (finding,) = inspect(folder).findings
    assert finding.file == "lang_clip_resnet50/auto_lang_ann.npy"
    assert (finding.what, finding.expected) == ("sentence embeddings: float32 (3, 1, 8)", "float (2, 1, D)")


def test_damaged_index_files_are_listed_and_the_rest_is_checked(folder: Path) -> None:
    (folder / "ep_start_end_ids.npy").write_bytes(b"")
    (folder / "scene_info.npy").write_bytes(b"x")
    (folder / "lang_annotations/auto_lang_ann.npy").write_bytes(b"y")
    (folder / "statistics.yaml").write_text("robot_obs: [")
    change_frame(folder, scene_obs=np.zeros(3))
    files = [finding.file for finding in inspect(folder).findings]
    assert files == ["ep_start_end_ids.npy", "scene_info.npy", "auto_lang_ann.npy", frame_name(FRAME), "statistics.yaml"]


def test_index_files_that_contradict_each_other(folder: Path) -> None:
    np.save(folder / "ep_start_end_ids.npy", np.array([(0, 69), (50, 69)]))
    save_object(folder / "scene_info.npy", {"calvin_scene_D": [0, 40], "calvin_scene_A": [30, 50]})
    findings = [(finding.file, finding.what) for finding in inspect(folder).findings]
    assert findings == [
        ("ep_start_end_ids.npy", "episodes 0 to 69 and 50 to 69 share frames"),
        ("ep_lens.npy", "other lengths than the episodes have"),
        ("scene_info.npy", "scenes D and A share frames 30 to 40"),
        ("scene_info.npy", "19 frames, 51 to 69, belong to no scene"),
    ]


def test_statistics_of_another_size(folder: Path) -> None:
    (folder / "statistics.yaml").write_text("robot_obs:\n- mean: [1.0, 2.0]\n  std: [1.0, 2.0]\n")
    (finding,) = inspect(folder).findings
    assert finding.what == "an unreadable file ((2,) numbers where 15 belong)"


def test_commands_of_a_collection_are_not_compared_with_the_poses_reached(folder: Path) -> None:
    change_frame(folder, rel_actions=np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert len(inspect(folder).findings) == 1
    (folder.parent / "collection.json").write_text(json.dumps({"complete": True}))
    report = inspect(folder)
    assert report.findings == ()
    assert any("commands that were sent" in note for note in report.notes)


def test_nothing_to_inspect(tmp_path: Path, folder: Path) -> None:
    with raises(DatasetError, got="no folder"):
        inspect_dataset(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with raises(DatasetError, got="no frame files"):
        inspect_dataset(tmp_path / "empty")
    with raises(ConfigError, "frames", got=0, expected="at least 1"):
        inspect_dataset(folder, num_frames=0)
