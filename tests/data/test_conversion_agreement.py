"""Actions that do not say what the arm did are refused, with the option that makes them right."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from rfedge.data.conversion import ConversionOptions, convert_dataset
from rfedge.data.conversion.convert import ConversionResult
from rfedge.data.robot import BASE_M
from rfedge.errors import DatasetError
from rfedge.robot.rotations import (
    euler_steps,
    euler_to_matrix,
    matrix_to_euler,
    rotation_about,
    rotation_vector,
    vectors_to_euler,
    wrap_angle,
)
from tests.errors import raises
from tests.synthetic_demonstrations import NEUTRAL_STATE

NUM_FRAMES = 60
STEPS = np.arange(NUM_FRAMES)


def smooth_steps(seed: int = 0, longest_m: float = 0.004, longest_rad: float = 0.01) -> np.ndarray:
    """(T, 6) motion as a hand makes it: slow changes of speed on all axes."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-1, 1, (7, 6)) * ([longest_m] * 3 + [longest_rad] * 3)
    return np.stack([np.interp(STEPS, np.linspace(0, NUM_FRAMES, 7), column) for column in corners.T], axis=1)


def write(path: Path, actions: np.ndarray, poses: np.ndarray, width_m: np.ndarray | float = 0.04) -> Path:
    """One demonstration in CALVIN's keys; `poses` (T, 6) go into the state, as float32 as recordings keep them."""
    states = np.tile(NEUTRAL_STATE, (len(actions), 1))
    states[:, :6], states[:, 6] = poses, width_m
    with h5py.File(path, "w") as file:
        group = file.create_group("demo_0")
        group.attrs["instruction"] = "do it"
        group["robot_obs"], group["rel_actions"] = states.astype(np.float32), actions.astype(np.float32)
        group["rgb_static"] = np.zeros((len(actions), 200, 200, 3), np.uint8)
        group["rgb_gripper"] = np.zeros((len(actions), 84, 84, 3), np.uint8)
    return path


def poses_of(steps: np.ndarray, start: np.ndarray = NEUTRAL_STATE[:6], lag: int = 0) -> np.ndarray:
    """(T, 6) poses of an arm that follows its (T, 6) commands `lag` frames late."""
    moved = np.concatenate((np.zeros((lag + 1, 6)), steps))[: len(steps)]
    return np.asarray(start + np.cumsum(moved, axis=0))


def with_gripper(actions: np.ndarray, gripper: np.ndarray | float = 1.0) -> np.ndarray:
    return np.concatenate((actions, np.broadcast_to(gripper, len(actions))[:, None]), axis=1)


def convert(source: Path, **options: object) -> ConversionResult:
    return convert_dataset(source, "hdf5", source.with_name("out"), ConversionOptions(**options), trial=True)


UNITS = np.array([0.02] * 3 + [0.05] * 3)


@pytest.mark.parametrize("lag", [0, 3])
@pytest.mark.parametrize("noise_m", [0.0, 0.0005])
def test_sound_actions_pass_and_their_factor_is_recorded(tmp_path: Path, lag: int, noise_m: float) -> None:
    steps = smooth_steps()
    poses = poses_of(steps, lag=lag) + noise_m * np.random.default_rng(1).normal(size=(NUM_FRAMES, 6))
    result = convert(write(tmp_path / "a.hdf5", with_gripper(steps / UNITS), poses))
    assert result.motion_factors == pytest.approx({"translation": 1.0, "rotation": 1.0}, abs=0.15)
    assert result.notes == ()


def test_a_unit_of_5_cm_is_not_taken_for_2(tmp_path: Path) -> None:
    """0.4 x 0.05 m moved the arm by 0.02 m a frame; read in units of 0.02 m it would ask for 0.008 m."""
    poses = np.tile(NEUTRAL_STATE[:6], (20, 1))
    poses[:, 0] = -0.2 + 0.02 * np.arange(20)
    source = write(tmp_path / "a.hdf5", with_gripper(np.tile([0.4, 0, 0, 0, 0, 0], (20, 1))), poses)
    remedy = "Pass --position-scale-m 0.05 instead of 0.02 (default of HDF5, CALVIN keys)..."
    with raises(DatasetError, "measured translation (x)", got="2.5 times the commanded motion", remedy=remedy):
        convert(source)
    assert convert(source, position_scale_m=0.05).motion_factors == pytest.approx({"translation": 1.0}, abs=1e-3)
    (note,) = convert(source, allow_mismatch=("motion",)).notes
    assert note.startswith("allowed: measured translation (x): got 2.5 times")


@pytest.mark.parametrize(
    ("position_unit_m", "rotation_unit_rad", "subject", "got", "remedy"),
    [
        (
            0.02,
            0.5,
            "... rotation (roll and pitch and yaw)",
            "10 and 10 and 10 times ...",
            "... --rotation-scale-rad 0.5 ...",
        ),
        (0.02, 0.02, "measured rotation ...", "0.4 and ...", "Pass --rotation-scale-rad 0.02 instead of 0.05..."),
        (0.008, 0.05, "measured translation ...", "0.4 and ...", "Pass --position-scale-m 0.008 instead of 0.02..."),
        (0.05, 0.5, "source ...", "2 faults", "(1) measured translation ...(2) measured rotation..."),
    ],
)
def test_every_scale_that_is_off_is_named(
    tmp_path: Path, position_unit_m: float, rotation_unit_rad: float, subject: str, got: str, remedy: str
) -> None:
    steps = smooth_steps()
    actions = steps / ([position_unit_m] * 3 + [rotation_unit_rad] * 3)
    source = write(tmp_path / "a.hdf5", with_gripper(actions), poses_of(steps, lag=1))
    with raises(DatasetError, subject, got=got, remedy=remedy):
        convert(source)
    assert convert(source, position_scale_m=position_unit_m, rotation_scale_rad=rotation_unit_rad).notes == ()


@pytest.mark.parametrize(
    ("change", "axis", "got", "remedy"),
    [
        (np.diag([1, -1, 1, 1, 1, 1]), "y", "-1 times ...", "A sign or axis differs..."),
        (np.diag([1, 1, 0.1, 1, 1, 1]), "z", "10 times ...", "Only a part of the axes..."),
    ],
)
def test_an_axis_of_its_own_is_named(tmp_path: Path, change: np.ndarray, axis: str, got: str, remedy: str) -> None:
    steps = smooth_steps()
    source = write(tmp_path / "a.hdf5", with_gripper((steps / UNITS) @ change), poses_of(steps))
    with raises(DatasetError, f"measured translation ({axis})", got=got, remedy=remedy):
        convert(source)


def turning_arm(yaw_rad: float) -> tuple[np.ndarray, np.ndarray]:
    """(T, 3) rotation vectors in the world frame, and the (T, 3) angles of an arm that makes them."""
    rng = np.random.default_rng(2)
    corners = rng.uniform(-0.03, 0.03, (7, 3))
    vectors = np.stack([np.interp(STEPS, np.linspace(0, NUM_FRAMES, 7), column) for column in corners.T], axis=1)
    matrix, angles = rotation_about(np.array([0.0, 0.0, 1.0]), yaw_rad) @ euler_to_matrix(np.array([3.0, 0.1, 0.0])), []
    for vector in vectors:
        angles.append(matrix_to_euler(matrix))
        angle = float(np.linalg.norm(vector))
        matrix = rotation_about(vector / angle, angle) @ matrix
    return vectors, np.array(angles)


@pytest.mark.parametrize("yaw_rad", [0.0, 1.5, -2.5])
def test_rotation_vectors_are_not_steps_of_euler_angles(tmp_path: Path, yaw_rad: float) -> None:
    vectors, angles = turning_arm(yaw_rad)
    poses = np.concatenate((np.tile(NEUTRAL_STATE[:3], (NUM_FRAMES, 1)), angles), axis=1)
    actions = np.concatenate((np.zeros((NUM_FRAMES, 3)), vectors / 0.05), axis=1)
    source = write(tmp_path / "a.hdf5", with_gripper(actions), poses)
    assert convert(source, rotation="axis-angle").motion_factors == pytest.approx({"rotation": 1.0}, abs=0.01)
    with raises(DatasetError, "rotations in the actions, read as euler", remedy="Pass --rotation axis-angle..."):
        convert(source, rotation="euler")
    # The other way round: steps of angles, read as vectors.
    steps = np.diff(angles, axis=0, append=angles[-1:] + 0.01)
    actions[:, 3:] = wrap_angle(steps) / 0.05
    source = write(tmp_path / "b.hdf5", with_gripper(actions), poses)
    convert(source)
    with raises(DatasetError, "rotations in the actions, read as axis-angle", remedy="Pass --rotation euler..."):
        convert(source, rotation="axis-angle")


@pytest.mark.parametrize("rotation", ["euler", "axis-angle"])
def test_absolute_poses_in_both_forms(tmp_path: Path, rotation: str) -> None:
    poses = poses_of(smooth_steps())
    commands = poses.copy()
    if rotation == "axis-angle":
        commands[:, 3:] = [rotation_vector(euler_to_matrix(row)) for row in poses[:, 3:]]
    source = write(tmp_path / "a.hdf5", with_gripper(commands), poses)
    assert convert(source, actions="absolute", rotation=rotation).clipped_share == 0.0
    other = "axis-angle" if rotation == "euler" else "euler"
    with raises(DatasetError, remedy=f"...read as {other}: ...ass --rotation {rotation}..."):
        convert(source, actions="absolute", rotation=other)
    source = write(tmp_path / "mm.hdf5", with_gripper(commands * ([1000.0] * 3 + [1.0] * 3)), poses)
    with raises(DatasetError, remedy="...measured translation ...0.001 times ... not in m of the state's frame..."):
        convert(source, actions="absolute", rotation=rotation)
    source = write(tmp_path / "far.hdf5", with_gripper(commands + 0.3 * np.eye(6)[0]), poses)
    with raises(DatasetError, "positions in the actions", got="0.3 m from the tool", expected="near it"):
        convert(source, actions="absolute", rotation=rotation)


def test_liberos_rotation_at_a_yaw_of_90_degrees(tmp_path: Path) -> None:
    """For R = Rz(90 degrees) and r = (0.025, 0, 0) rad the right action is (0, -0.5, 0) units of 0.05 rad."""
    path = tmp_path / "libero.hdf5"
    turn = rotation_about(np.array([0.0, 0.0, 1.0]), np.pi / 2)
    with h5py.File(path, "w") as file:
        demo = file.create_group("data/demo_0")
        demo.attrs["instruction"] = "do it"
        demo["actions"] = np.tile([0, 0, 0, 0.05, 0, 0, -1.0], (8, 1))
        made = [rotation_about(np.array([1.0, 0, 0]), 0.025 * step) @ turn for step in range(8)]
        content = {
            "agentview_rgb": np.full((8, 128, 128, 3), 90, np.uint8),
            "eye_in_hand_rgb": np.full((8, 128, 128, 3), 90, np.uint8),
            "ee_pos": np.tile([0.0, 0, 0.5], (8, 1)),
            "ee_ori": np.array([rotation_vector(matrix) for matrix in made]),
            "gripper_states": np.tile([0.04, -0.04], (8, 1)),
            "joint_states": np.tile(NEUTRAL_STATE[7:14], (8, 1)),
        }
        for name, array in content.items():
            demo[f"obs/{name}"] = array
    for actions in ("relative", "next-state"):
        output = tmp_path / actions
        convert_dataset(path, "hdf5", output, ConversionOptions(fps=20.0, actions=actions))
        with np.load(output / "training/episode_0000000.npz") as frame:
            np.testing.assert_allclose(frame["rel_actions"][3:6], [0.0, -0.5, 0.0], atol=1e-6)


def test_a_pose_that_never_moves_says_nothing(tmp_path: Path) -> None:
    still = np.tile(NEUTRAL_STATE[:6], (NUM_FRAMES, 1))
    source = write(tmp_path / "a.hdf5", with_gripper(np.tile([0.25, 0, 0, 0, 0, 0], (NUM_FRAMES, 1))), still)
    result = convert(source)
    assert result.motion_factors == {}
    assert result.notes == ("the measured pose never moves, so the units of the actions were not compared with it",)


def closing(command: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Actions whose command is `command` of the steps, and fingers that shut at step 22."""
    return with_gripper(np.zeros((NUM_FRAMES, 6)), command(STEPS)), np.where(STEPS < 22, 0.08, 0.01)


STILL = np.tile(NEUTRAL_STATE[:6], (NUM_FRAMES, 1))


@pytest.mark.parametrize(
    ("before", "after", "convention", "right"),
    [
        (-1.0, 1.0, None, "open-1-close1"),
        (1.0, -1.0, "open-1-close1", "close-1-open1"),
        (0.0, 1.0, "close0-open1", "open0-close1"),
        (0.95, 0.05, None, "close0-open1"),
        (0.05, 0.95, None, "open0-close1"),
        (0.05, 0.95, "close0-open1", "open0-close1"),
        (1.0, 0.2, None, "close0-open1"),
        (-0.9, -0.2, None, None),
    ],
)
def test_the_fingers_tell_sign_and_threshold(
    tmp_path: Path, before: float, after: float, convention: str | None, right: str | None
) -> None:
    actions, width_m = closing(lambda steps: np.where(steps < 20, before, after))
    source = write(tmp_path / "a.hdf5", actions, STILL, width_m)
    if right is None:  # closed in every frame, while the fingers close: nothing contradicts it
        convert(source, gripper=convention)
        return
    with raises(DatasetError, "gripper action, convention ...", remedy=f"Pass --gripper-convention {right}, or convert..."):
        convert(source, gripper=convention)
    convert(source, gripper=right)
    (note,) = convert(source, gripper=convention, allow_mismatch=("gripper",)).notes
    assert note.startswith("allowed: gripper action")


def test_a_last_number_that_is_no_gripper_is_refused(tmp_path: Path) -> None:
    actions, width_m = closing(lambda steps: np.ones(len(steps)))
    source = write(tmp_path / "a.hdf5", actions, STILL, width_m)
    got = "open in every frame (values 1 to 1) while the fingers move 0.070 m"
    with raises(DatasetError, got=got, remedy="...--map actions=KEY..."):
        convert(source)


def test_slow_fingers_and_objects_between_them_pass(tmp_path: Path) -> None:
    command = np.where((STEPS > 15) & (STEPS < 45), -1.0, 1.0)
    width_m = np.interp(STEPS, [0, 20, 32, 48, 58], [0.08, 0.08, 0.045, 0.045, 0.08])
    convert(write(tmp_path / "a.hdf5", with_gripper(np.zeros((NUM_FRAMES, 6)), command), STILL, width_m))


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    actions, width_m = closing(lambda steps: np.where(steps < 20, -1.0, 1.0))
    actions[:, 0] = 0.4
    source = write(tmp_path / "a.hdf5", actions, poses_of(0.05 * actions[:, :6] * [0.2, 0, 0, 0, 0, 0]), width_m)
    with h5py.File(source, "a") as file:
        del file["demo_0/rgb_gripper"]
        for number in (1, 2, 3):
            file.copy("demo_0", file, f"demo_{number}")
        file["demo_1/robot_obs"][4, 7] = np.nan
        file["demo_2/robot_obs"][:, 3:6] *= 180.0 / np.pi
        del file["demo_3/rel_actions"]
        file["demo_3/rel_actions"] = actions[:, :6]
    with raises(DatasetError, f"source {source}", got="7 faults", expected="none") as error:
        convert(source, source_fps=25.0)
    assert "\n" not in str(error.value)
    for part in (
        "(1) source (HDF5, CALVIN keys): got no wrist camera",
        "--source-fps: got 25 Hz, expected 30 Hz, which the source says",
        "state of demo_1 of a.hdf5, step 4: got NaN or Inf",
        "tcp angles of demo_2 of a.hdf5: got values up to 17",
        "actions of demo_3 of a.hdf5: got 6 numbers",
        "measured translation (x): got 0.5 times the commanded motion",
        "gripper action, convention close-1-open1: got fingers that close when it opens",
    ):
        assert part in error.value.remedy


def test_euler_steps_are_what_the_converter_writes() -> None:
    """The converter's own arithmetic on whole episodes, against matrices."""
    vectors, angles = turning_arm(0.7)
    expected = vectors_to_euler(np.array([rotation_vector(euler_to_matrix(row)) for row in angles]))
    reached = angles[:-1] + euler_steps(angles[:-1], vectors[:-1])
    np.testing.assert_allclose(wrap_angle(reached - expected[1:]), 0.0, atol=1e-9)


def test_positions_counted_from_the_base_are_offered_the_offset(tmp_path: Path) -> None:
    steps = smooth_steps(longest_m=0.001)
    start = NEUTRAL_STATE[:6] - np.array([*BASE_M, 0.0, 0.0, 0.0])
    source = write(tmp_path / "base.hdf5", with_gripper(np.zeros_like(steps)), poses_of(steps, start))
    with raises(DatasetError, got="2 faults", remedy="...pass --tcp-offset-m -0.34,-0.46,0.24...1 m of the shoulder..."):
        convert(source, actions="next-state")
    convert(source, actions="next-state", tcp_offset_m=BASE_M)
