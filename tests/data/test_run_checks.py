"""What only consecutive frames show: frozen cameras, actions and fingers that contradict the state; and sentences."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from rfedge.data import CalvinDataset
from rfedge.data.calvin import Segment, write_episode, write_index
from rfedge.data.frames import absolute_actions
from rfedge.data.inspection.report import InspectionReport, inspect_dataset
from rfedge.data.statistics import DatasetStatistics
from rfedge.errors import DatasetError
from tests.data.released_split import save_object
from tests.errors import raises
from tests.synthetic_demonstrations import NEUTRAL_STATE

NUM_FRAMES = 60
STEPS = np.arange(NUM_FRAMES)


def write(
    root: Path,
    *,
    rel_actions: np.ndarray | None = None,
    factor: float = 1.0,
    width_m: np.ndarray | float = 0.04,
    pictures: np.ndarray = STEPS,
    conversion: dict | None = None,
) -> Path:
    """One episode of an arm that moves `factor` times as far as its actions ask; picture i is of kind `pictures[i]`."""
    if rel_actions is None:
        rel_actions = np.zeros((NUM_FRAMES, 7))
        rel_actions[:, :6] = 0.4 * np.sin(STEPS[:, None] / 9.0 + np.arange(6))
        rel_actions[:, 6] = 1.0
    states = np.tile(NEUTRAL_STATE, (NUM_FRAMES, 1))
    moved = factor * rel_actions[:-1, :6] * ([0.02] * 3 + [0.05] * 3)
    states[1:, :6] += np.cumsum(moved, axis=0)
    states[:, 6] = width_m
    ramp = np.arange(200, dtype=np.uint8)[None, :, None, None]
    images = np.broadcast_to(ramp, (NUM_FRAMES, 200, 200, 3)) + pictures.astype(np.uint8)[:, None, None, None]
    frames = {
        "rgb_static": images,
        "rgb_gripper": np.ascontiguousarray(images[:, :84, :84]),
        "robot_obs": states,
        "scene_obs": np.zeros((NUM_FRAMES, 24)),
        "rel_actions": rel_actions,
        "actions": absolute_actions(states, rel_actions),
    }
    folder = root / "training"
    write_episode(folder, 0, frames)
    statistics = DatasetStatistics()
    statistics.add("do", frames)
    write_index(folder, [Segment(0, NUM_FRAMES - 1, "do", "do it")], statistics, scene="D")
    if conversion is not None:
        record = {"frequency_hz": 30.0, "options": {"resize": "crop", "actions": "relative", **conversion}, "missing": []}
        (root / "conversion.json").write_text(json.dumps(record))
    return root


def inspect(root: Path, num_frames: int | None = None) -> InspectionReport:
    return inspect_dataset(root, num_frames=num_frames)


@pytest.mark.parametrize("num_frames", [None, 40])
def test_the_factor_of_sound_demonstrations_is_reported(tmp_path: Path, num_frames: int | None) -> None:
    report = inspect(write(tmp_path, conversion={}), num_frames)
    assert report.findings == ()
    assert report.motion_factors == pytest.approx({"translation": 1.0, "rotation": 1.0}, abs=0.01)
    assert report.num_frames_checked == (num_frames or NUM_FRAMES)


def test_converted_actions_are_held_to_the_motion(tmp_path: Path) -> None:
    found = inspect(write(tmp_path / "a", factor=2.5, conversion={})).findings
    assert [finding.file for finding in found] == ["rel_actions", "rel_actions"]
    assert found[0].what.startswith("measured translation (x and y and z): 2.5 and 2.5 and 2.5 times the commanded one")
    assert found[1].what.startswith("measured rotation (roll and pitch and yaw): 2.5 and")
    allowed = inspect(write(tmp_path / "b", factor=2.5, conversion={"allow_mismatch": ["motion"]}))
    assert allowed.findings == ()
    assert any(note.startswith("allowed at conversion: measured translation") for note in allowed.notes)


@pytest.mark.parametrize(("factor", "num_findings"), [(0.35, 0), (0.05, 2), (1.0, 0), (2.5, 2), (-1.0, 2)])
def test_calvins_own_actions_lead_the_arm_and_may_be_longer_than_its_motion(
    tmp_path: Path, factor: float, num_findings: int
) -> None:
    assert len(inspect(write(tmp_path, factor=factor)).findings) == num_findings


def test_fingers_that_contradict_their_command(tmp_path: Path) -> None:
    rel_actions = np.zeros((NUM_FRAMES, 7))
    rel_actions[:, 6] = np.where(STEPS < 20, -1.0, 1.0)
    width_m = np.where(STEPS < 22, 0.08, 0.01)
    (finding,) = inspect(write(tmp_path / "a", rel_actions=rel_actions, width_m=width_m)).findings
    assert finding.what == "gripper: the fingers close when it opens"
    rel_actions[:, 6] = 1.0
    (finding,) = inspect(write(tmp_path / "b", rel_actions=rel_actions, width_m=width_m)).findings
    assert finding.what == "gripper: open in every frame while the fingers move 0.070 m"
    rel_actions[:, 6] = np.where(STEPS < 20, 1.0, -1.0)
    assert inspect(write(tmp_path / "c", rel_actions=rel_actions, width_m=width_m)).findings == ()


def test_a_camera_that_repeats_one_picture_while_the_arm_moves(tmp_path: Path) -> None:
    report = inspect(write(tmp_path / "a", pictures=np.clip(STEPS, 10, 34)))
    named = [(finding.file, finding.what) for finding in report.findings]
    assert named == [
        (files, f"{key}: one picture in all {count} frames, while the arm moves or is asked to")
        for key in ("rgb_static", "rgb_gripper")
        for files, count in (
            ("episode_0000000.npz to episode_0000010.npz", 11),
            ("episode_0000034.npz to episode_0000059.npz", 26),
        )
    ]
    assert inspect(write(tmp_path / "b", pictures=STEPS // 3)).findings == (), "a picture may be shown some times"
    still = np.zeros((NUM_FRAMES, 7))
    still[:, 6] = 1.0
    resting = inspect(write(tmp_path / "c", rel_actions=still, pictures=0 * STEPS))
    assert resting.findings == ()
    assert "rgb_static shows one picture in up to 60 frames in a row, while the arm rests" in resting.notes


def annotate(root: Path, words: list[object]) -> Path:
    bounds = [(20 * place, 20 * place + 19) for place in range(len(words))]
    language = {
        "ann": words,
        "task": [f"task_{place}" for place in range(len(words))],
        "emb": np.zeros((len(words), 1, 384)),
    }
    path = root / "training/lang_annotations/auto_lang_ann.npy"
    save_object(path, {"language": language, "info": {"episodes": [], "indx": bounds}})
    return path


@pytest.mark.parametrize("blank", ["", "  ", None])
def test_a_blank_sentence_costs_its_segment_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, blank: str | None
) -> None:
    root = write(tmp_path)
    path = annotate(root, ["open the drawer", blank, b"lift the cup"])
    with caplog.at_level(logging.WARNING):
        dataset = CalvinDataset.open(root)
    assert [(part.start, part.instruction) for part in dataset.segments] == [(0, "open the drawer"), (40, "lift the cup")]
    assert caplog.messages == [f"{path}: segment 1 (task_1, frames 20 to 39) has no instruction and is left out"]
    (finding,) = inspect(root).findings
    assert (finding.file, finding.what) == (
        "lang_annotations/auto_lang_ann.npy",
        "segment 1 (task_1, frames 20 to 39): no instruction",
    )
    annotate(root, [blank])
    with raises(DatasetError, got="1 segments, none with an instruction", expected="at least one"):
        CalvinDataset.open(root)


def test_the_scene_file_is_held_to_the_recorded_configuration(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path)
    (root / "training/.hydra").mkdir()
    (root / "training/.hydra/merged_config.yaml").write_text("scene:\n  name: calvin_scene_B\n")
    (finding,) = inspect(root).findings
    assert (finding.file, finding.what, finding.expected) == ("scene_info.npy", "scenes D", "scene B, which .hydra names")
    CalvinDataset.open(root)
    assert "scene_info.npy does not name scene B, the recorded configuration does" in caplog.text
    (root / "training/.hydra/merged_config.yaml").write_text("scene:\n  name: calvin_scene_D\n")
    assert inspect(root).findings == ()
