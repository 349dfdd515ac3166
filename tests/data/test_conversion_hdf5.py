"""HDF5 demonstrations of robomimic, LIBERO and CALVIN keys come out as CALVIN frames with the motion they went in with."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from rfedge.data import CalvinDataset, FrameCache
from rfedge.data.conversion import ConversionOptions, convert_dataset, parse_fields, read_field_file
from rfedge.data.conversion.convert import ConversionResult
from rfedge.data.inspection.report import inspect_dataset
from rfedge.errors import ArtifactError, ConfigError, DatasetError
from rfedge.robot.rotations import (
    euler_to_matrix,
    euler_to_quaternion,
    quaternions_to_euler,
    rotation_about,
    rotation_vector,
    vectors_to_euler,
)
from tests.errors import raises
from tests.synthetic_demonstrations import NEUTRAL_STATE

NUM_FRAMES = 30
EULER = np.array([3.09, -0.03, 1.5])


def robosuite_demo(group: h5py.Group, style: str, num_frames: int = NUM_FRAMES) -> None:
    """A tcp that moves 2 mm a frame along x, by actions of 0.04 units of 0.05 m; the gripper closes half-way (+1)."""
    position = np.tile(NEUTRAL_STATE[:3], (num_frames, 1))
    position[:, 0] += 0.002 * np.arange(num_frames)
    actions = np.zeros((num_frames, 7))
    actions[:, 0] = 0.04
    actions[:, 6] = np.where(np.arange(num_frames) < num_frames // 2, -1.0, 1.0)
    group["actions"] = actions
    fingers = np.tile([0.03, -0.03], (num_frames, 1))
    joints = np.tile(NEUTRAL_STATE[7:14], (num_frames, 1))
    images = np.zeros((num_frames, 128, 128, 3), np.uint8)
    images[:, :64] = 200  # the upper half is bright
    images[..., 2] = np.arange(num_frames)[:, None, None]
    obs = group.create_group("obs")
    if style == "libero":
        axis_angle = rotation_vector(euler_to_matrix(EULER))
        content = {
            "agentview_rgb": images,
            "eye_in_hand_rgb": images,
            "ee_pos": position,
            "ee_ori": np.tile(axis_angle, (num_frames, 1)),
            "gripper_states": fingers,
            "joint_states": joints,
        }
    else:
        content = {
            "agentview_image": images,
            "robot0_eye_in_hand_image": images,
            "robot0_eef_pos": position,
            "robot0_eef_quat": np.tile(euler_to_quaternion(EULER), (num_frames, 1)),
            "robot0_gripper_qpos": fingers,
            "robot0_joint_pos": joints,
        }
    for name, array in content.items():
        obs[name] = array


def write_robosuite(path: Path, style: str, *, lengths: tuple[int, ...] = (NUM_FRAMES, NUM_FRAMES)) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": 20}})
        if style == "libero":
            data.attrs["problem_info"] = json.dumps({"language_instruction": '"Pull the handle to open the drawer."'})
        for index, length in enumerate(lengths):
            robosuite_demo(data.create_group(f"demo_{index}"), style, length)
    return path


def write_calvin_keys(path: Path, *, num_frames: int = 20, root: str = "data/", **changes: np.ndarray | None) -> Path:
    rng = np.random.default_rng(0)
    rel_actions = np.append(rng.uniform(-0.5, 0.5, (num_frames, 6)), np.ones((num_frames, 1)), axis=1)
    content = {
        "rgb_static": np.tile(rng.integers(0, 255, (num_frames, 200, 1, 3), np.uint8), (1, 200, 1)),
        "rgb_gripper": np.tile(rng.integers(0, 255, (num_frames, 84, 1, 3), np.uint8), (1, 84, 1)),
        "robot_obs": np.tile(NEUTRAL_STATE, (num_frames, 1)),
        "scene_obs": rng.normal(size=(num_frames, 24)),
        "rel_actions": rel_actions,
        **changes,
    }
    with h5py.File(path, "w") as file:
        for index in (10, 2):
            group = file.create_group(f"{root}demo_{index}")
            group.attrs["instruction"] = f"do number {index}"
            for name, array in content.items():
                if array is not None:
                    group[name] = array
    return path


def convert(source: Path, output: Path, **options: object) -> ConversionResult:
    return convert_dataset(source, "hdf5", output, ConversionOptions(**options))


def read_all(root: Path) -> dict[str, np.ndarray]:
    dataset = CalvinDataset.open(root)
    frames = [dataset.frame(number) for number in range(dataset.episodes[-1][1] + 1)]
    return {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}


def test_calvin_keys_pass_through_unchanged(tmp_path: Path) -> None:
    source = write_calvin_keys(tmp_path / "a.hdf5")
    result = convert(source, tmp_path / "out")
    assert (result.layout, result.missing, result.clipped_share) == ("HDF5, CALVIN keys", (), 0.0)
    dataset = CalvinDataset.open(tmp_path / "out")
    # By number, not by name: demo_2 comes before demo_10.
    assert [segment.instruction for segment in dataset.segments] == ["do number 2", "do number 10"]
    assert dataset.tasks == ("do_number_10", "do_number_2")
    assert dataset.episodes == ((0, 19), (20, 39))
    frames = read_all(tmp_path / "out")
    with h5py.File(source) as file:
        demo = file["data/demo_2"]
        for key in ("rgb_static", "rgb_gripper", "scene_obs"):
            np.testing.assert_array_equal(frames[key][:20], demo[key][()])
        np.testing.assert_allclose(frames["rel_actions"][:20], demo["rel_actions"][()], atol=1e-12)
        np.testing.assert_allclose(frames["robot_obs"][:20], demo["robot_obs"][()], atol=1e-12)
    assert inspect_dataset(tmp_path / "out", num_frames=None).findings == ()
    assert len(FrameCache.open(dataset).numbers) == 40


def test_demos_at_the_root_and_several_files(tmp_path: Path) -> None:
    write_calvin_keys(tmp_path / "b.h5", root="")
    write_calvin_keys(tmp_path / "a.hdf5")
    assert convert(tmp_path, tmp_path / "out").num_episodes == 4


@pytest.mark.parametrize("style", ["libero", "robomimic"])
def test_robosuite_layouts(tmp_path: Path, style: str) -> None:
    source = write_robosuite(tmp_path / "demo.hdf5", style)
    instruction = None if style == "libero" else "pull the handle to open the drawer"
    tasks = {"pull the handle to open the drawer": "open_drawer"}
    result = convert(source, tmp_path / "out", fps=20, instruction=instruction, tasks=tasks)
    assert (result.source_hz, result.frequency_hz, result.missing) == (20.0, 20.0, ("scene_obs",))
    assert CalvinDataset.open(tmp_path / "out").tasks == ("open_drawer",)
    frames = read_all(tmp_path / "out")
    np.testing.assert_allclose(frames["robot_obs"][:, 3:6], np.tile(EULER, (60, 1)), atol=1e-9)
    np.testing.assert_allclose(frames["robot_obs"][:, 6], 0.06)
    # 0.04 units of 0.05 m are 2 mm, a tenth of CALVIN's unit; the source's +1 closes.
    np.testing.assert_allclose(frames["rel_actions"][:, 0], 0.1)
    np.testing.assert_array_equal(frames["rel_actions"][:30, 6], np.where(np.arange(30) < 15, 1.0, -1.0))
    # The last element of the state is the action before.
    np.testing.assert_array_equal(frames["robot_obs"][1:30, 14], frames["rel_actions"][:29, 6])
    is_upright = style == "robomimic"  # LIBERO's rows start at the bottom
    assert (frames["rgb_static"][:, 20, 100, 0] == 200).all() == is_upright
    assert (frames["rgb_static"][:, 180, 100, 0] == 200).all() != is_upright
    np.testing.assert_array_equal(frames["rgb_static"][:30, 100, 100, 2], np.arange(30))
    assert inspect_dataset(tmp_path / "out", num_frames=None).findings == ()


@pytest.mark.parametrize("actions", ["relative", "next-state"])
def test_resampling_keeps_the_motion(tmp_path: Path, actions: str) -> None:
    source = write_robosuite(tmp_path / "demo.hdf5", "robomimic", lengths=(30,))
    result = convert(source, tmp_path / "out", fps=30, instruction="go", actions=actions)
    assert result.num_frames == 45
    frames = read_all(tmp_path / "out")
    # 2 mm a frame at 20 Hz are 4/3 mm at 30 Hz.
    moved = slice(None) if actions == "relative" else slice(0, 43)
    np.testing.assert_allclose(frames["rel_actions"][moved, 0], 0.1 * 20 / 30, atol=1e-9)
    speed = np.diff(frames["robot_obs"][:43, 0])
    np.testing.assert_allclose(speed, 0.002 * 20 / 30, atol=1e-9)
    np.testing.assert_array_equal(frames["rgb_static"][:, 0, 0, 2], np.arange(45) * 2 // 3)
    assert frames["rel_actions"][21, 6] == 1.0
    assert frames["rel_actions"][23, 6] == -1.0


def test_absolute_poses_follow_calvins_rule(tmp_path: Path) -> None:
    poses = np.tile(NEUTRAL_STATE[:6], (20, 1))
    poses[:, 0] += 0.005
    poses[:, 1] += 1.0
    poses[:, 3] = -np.pi + 0.01  # a hair past pi: the way round is short
    commands = np.append(poses, np.zeros((20, 1)), axis=1)
    source = write_calvin_keys(tmp_path / "a.hdf5", rel_actions=commands)
    result = convert(source, tmp_path / "out", actions="absolute", gripper="close0-open1")
    frames = read_all(tmp_path / "out")
    np.testing.assert_allclose(frames["rel_actions"][0, [0, 1, 2]], [0.25, 1.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(frames["rel_actions"][0, 3], min((np.pi + 0.01 - 3.09) / 0.05, 1.0), atol=1e-9)
    assert (frames["rel_actions"][:, 6] == -1.0).all()
    assert result.clipped_share == 1.0


def test_long_episodes_stay_whole_and_are_cut_into_segments(tmp_path: Path) -> None:
    source = write_calvin_keys(tmp_path / "a.hdf5", num_frames=130)
    convert(source, tmp_path / "out")
    dataset = CalvinDataset.open(tmp_path / "out")
    assert dataset.episodes == ((0, 129), (130, 259))
    assert [(segment.start, segment.end) for segment in dataset.segments[:3]] == [(0, 42), (43, 85), (86, 129)]
    assert np.load(tmp_path / "out/training/ep_start_end_ids.npy").tolist() == [[0, 129], [130, 259]]


def test_the_record_says_what_was_done(tmp_path: Path) -> None:
    source = write_robosuite(tmp_path / "demo.hdf5", "libero")
    with h5py.File(source, "a") as file:
        for index in range(2):
            del file[f"data/demo_{index}/obs/eye_in_hand_rgb"], file[f"data/demo_{index}/obs/joint_states"]
    convert(source, tmp_path / "out", fps=20, allow_missing=("gripper", "joints"))
    record = json.loads((tmp_path / "out/conversion.json").read_bytes())
    assert record["missing"] == ["gripper", "joints", "scene_obs"]
    assert record["conventions"] == {
        "position_scale_m": 0.05,
        "rotation_scale_rad": 0.5,
        "rotation": "axis-angle",
        "gripper": "open-1-close1",
        "flip": "vertical",
    }
    assert (record["source"], record["source_hz"], record["frequency_hz"]) == ("demo.hdf5", 20.0, 20.0)
    report = inspect_dataset(tmp_path / "out", num_frames=None)
    assert report.findings == ()  # the black wrist images are known to be missing
    assert "converted without gripper" in report.notes
    assert not CalvinDataset.open(tmp_path / "out").frame(0)["robot_obs"][7:14].any(), "zeros, as a robot reports"


def test_padding_keeps_the_aspect_ratio(tmp_path: Path) -> None:
    wide = np.full((20, 100, 200, 3), 255, np.uint8)
    source = write_calvin_keys(tmp_path / "a.hdf5", rgb_static=wide)
    convert(source, tmp_path / "pad", resize="pad")
    convert(source, tmp_path / "stretch")
    padded, stretched = (read_all(tmp_path / name)["rgb_static"][0] for name in ("pad", "stretch"))
    assert (padded[:50] == 0).all()
    assert (padded[50:150] == 255).all()
    assert (padded[150:] == 0).all()
    assert (stretched == 255).all()


def test_parts_of_the_state_can_be_mapped(tmp_path: Path) -> None:
    """A state of 8 numbers: xyz, axis-angle, two fingers, as LIBERO's LeRobot version has it."""
    axis_angle = rotation_vector(euler_to_matrix(EULER))
    state = np.tile([*NEUTRAL_STATE[:3], *axis_angle, 0.02, -0.02], (20, 1))
    source = write_calvin_keys(tmp_path / "a.hdf5", robot_obs=state)
    with raises(DatasetError, "state of demo_2 of a.hdf5", got="8 numbers", expected="CALVIN's 15..."):
        convert(source, tmp_path / "out")
    texts = ["tcp_pos=robot_obs[0:3]", "tcp_axis_angle=robot_obs[3:6]", "gripper_width=robot_obs[6:8]"]
    with raises(DatasetError, got="no joints", remedy="...--map joints=KEY, or pass --allow-missing joints..."):
        convert(source, tmp_path / "out", fields=parse_fields(texts))
    convert(source, tmp_path / "out", fields=parse_fields(texts), allow_missing=("joints",))
    frames = read_all(tmp_path / "out")
    np.testing.assert_allclose(frames["robot_obs"][:, 3:6], np.tile(EULER, (20 * 2, 1)), atol=1e-9)
    np.testing.assert_allclose(frames["robot_obs"][:, 6], 0.04)


def test_another_world_frame_is_refused_and_can_be_moved(tmp_path: Path) -> None:
    state = np.tile(NEUTRAL_STATE, (20, 1))
    state[:, :3] += (0.5, 0.5, 0.9)
    source = write_calvin_keys(tmp_path / "a.hdf5", robot_obs=state)
    with raises(DatasetError, "tcp in robot_obs of demo_2 of a.hdf5, step 0", got="(0.526...", remedy="...world frame..."):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "out", tcp_offset_m=(-0.5, -0.5, -0.9))
    np.testing.assert_allclose(read_all(tmp_path / "out")["robot_obs"][0, :3], NEUTRAL_STATE[:3])


STATE = np.tile(NEUTRAL_STATE, (20, 1))
ACTIONS = np.append(np.zeros((20, 6)), np.ones((20, 1)), axis=1)


@pytest.mark.parametrize(
    ("changes", "fields", "subject", "got"),
    [
        ({"rel_actions": np.zeros((20, 14))}, [], "actions of demo_2 of a.hdf5", "14 numbers"),
        ({"rel_actions": None}, [], "demo_2 of a.hdf5", "no actions"),
        ({"rel_actions": 3.0 * ACTIONS}, [], "gripper action of demo_2 of a.hdf5", "values from 3 to 3"),
        ({"rel_actions": np.full((20, 7), np.nan)}, [], "actions of demo_2 of a.hdf5, step 0", "NaN or Inf"),
        ({"rel_actions": ACTIONS + 2 * (np.arange(7) < 6)}, [], "relative actions of demo_2 of a.hdf5", "values up to 2"),
        ({"rel_actions": 0.0 * ACTIONS}, [], "gripper action of demo_2 of a.hdf5", "values from 0 to 0"),
        ({"rgb_gripper": None}, [], "source (HDF5, CALVIN keys)", "no wrist camera"),
        ({"rgb_static": np.zeros((20, 64, 64), np.uint8)}, [], "rgb_static of demo_2 of a.hdf5", "uint8 (64, 64)"),
        ({"robot_obs": STATE + np.pi * (np.arange(15) == 10)}, [], "joint 4 in robot_obs of demo_2 ...", "0.800 rad"),
        ({"robot_obs": STATE[:7]}, [], "demo_2 of a.hdf5", "lengths ..."),
        ({}, ["actions=nothing"], "data/demo_2 of ...", "no 'nothing' for actions"),
        ({}, ["joints=robot_obs[7:13]", "tcp_pos=robot_obs[0:3]", "tcp_euler=robot_obs[3:6]", "gripper_width=robot_obs[6]"],
         "joints of demo_2 of a.hdf5", "6 numbers"),
        ({}, ["state=robot_obs[7:40]"], "robot_obs[7:40] of demo_2 of a.hdf5", "15 elements"),
    ],
)  # fmt: skip
def test_a_source_of_another_kind(tmp_path: Path, changes: dict, fields: list[str], subject: str, got: str) -> None:
    source = write_calvin_keys(tmp_path / "a.hdf5", **changes)
    options = {"fields": parse_fields(fields)} if fields else {}
    with raises(DatasetError, subject, got=got):
        convert(source, tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]  # nothing half-written stays


def test_another_frequency_is_a_decision(tmp_path: Path) -> None:
    source = write_robosuite(tmp_path / "a.hdf5", "libero")
    with raises(ConfigError, got="20 Hz", expected="30 Hz,...", remedy="...--fps 30 to resample, or --fps 20 to keep it..."):
        convert(source, tmp_path / "out")
    with h5py.File(source, "a") as file:
        demo = file["data/demo_0"]
        demo.move("obs/agentview_rgb", "obs/camera")
    with raises(DatasetError, remedy="...expected keys of robomimic, LIBERO or CALVIN. Name the fields, say --map..."):
        convert(source, tmp_path / "out")


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.hdf5").write_text("not HDF5")
    for path, got in ((tmp_path / "text.hdf5", "an unreadable file..."), (tmp_path / "nowhere", "no file")):
        with raises(DatasetError, got=got):
            convert(path, tmp_path / "out")
    with h5py.File(tmp_path / "empty.hdf5", "w") as file:
        file.create_group("data")
    with raises(DatasetError, got="no demonstrations", expected="groups demo_0..."):
        convert(tmp_path / "empty.hdf5", tmp_path / "out")
    (tmp_path / "folder").mkdir()
    with raises(DatasetError, got="no HDF5 file in it"):
        convert(tmp_path / "folder", tmp_path / "out")
    source = write_calvin_keys(tmp_path / "cut.hdf5")
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    with raises(DatasetError, "...cut.hdf5", got="an unreadable ..."):
        convert(source, tmp_path / "out")


def test_no_instruction(tmp_path: Path) -> None:
    source = write_robosuite(tmp_path / "a.hdf5", "robomimic")
    with raises(DatasetError, got="no instruction", remedy="...--instruction, or name the attribute with --map..."):
        convert(source, tmp_path / "out", fps=20)


def test_a_trial_writes_nothing_and_an_old_result_stays(tmp_path: Path) -> None:
    source = write_calvin_keys(tmp_path / "a.hdf5")
    options = ConversionOptions()
    result = convert_dataset(source, "hdf5", tmp_path / "out", options, trial=True)
    assert (result.folder, result.num_frames, result.num_episodes) == (None, 20, 2)
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out")
    with raises(ArtifactError, got="an existing path", remedy="Pass --overwrite or another --output."):
        convert(source, tmp_path / "out")
    longer = replace(options, instruction="press it", split="validation")
    convert_dataset(source, "hdf5", tmp_path / "out", longer, overwrite=True)
    assert CalvinDataset.open(tmp_path / "out", split="validation").instructions == ("press it",)


def test_fields_are_read_from_text_and_files(tmp_path: Path) -> None:
    fields = parse_fields(["tcp_pos=observation.state[0:3]", "gripper_width = obs/width[6]", "static=cam"])
    assert {name: str(field) for name, field in fields.items()} == {
        "tcp_pos": "observation.state[0:3]",
        "gripper_width": "obs/width[6:7]",
        "static": "cam",
    }
    (tmp_path / "map.yaml").write_text("static: cam\ntcp_pos: observation.state[0:3]\n")
    (tmp_path / "map.json").write_text('{"static": "cam", "tcp_pos": "observation.state[0:3]"}')
    assert read_field_file(tmp_path / "map.yaml") == read_field_file(tmp_path / "map.json")
    for text, got in (("static", "'static'"), ("statik=cam", "'statik'"), ("static=a[x]", "'static=a[x]'")):
        with raises(ConfigError, "--map", got=got):
            parse_fields([text])
    for content, expected in (("[", "a YAML or JSON mapping"), ("- a", "one mapping FIELD: KEY")):
        (tmp_path / "bad.yaml").write_text(content)
        with raises(ConfigError, expected=expected):
            read_field_file(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("name", "value", "got"), [("actions", "rel", "'rel'"), ("allow_missing", ("static",), "'static'"), ("fps", -1.0, -1.0)]
)
def test_unknown_options(name: str, value: object, got: object) -> None:
    with raises(ConfigError, f"--{name.replace('_', '-')}", got=got):
        ConversionOptions(**{name: value}).check()


def test_an_unknown_format(tmp_path: Path) -> None:
    with raises(ConfigError, "--from", got="'hdf'", expected="one of hdf5, lerobot..."):
        convert_dataset(tmp_path, "hdf", tmp_path / "out", ConversionOptions())


def test_rotations_agree_with_the_simulators() -> None:
    rng = np.random.default_rng(0)
    euler = rng.uniform((-3.1, -1.5, -3.1), (3.1, 1.5, 3.1), (50, 3))
    quaternions = np.stack([euler_to_quaternion(row) for row in euler]) * rng.uniform(0.5, 2.0, (50, 1))
    np.testing.assert_allclose(quaternions_to_euler(quaternions), euler, atol=1e-9)
    axes = rng.normal(size=(50, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = np.append(rng.uniform(0.0, 3.0, 49), 0.0)
    for row, axis, angle in zip(vectors_to_euler(axes * angles[:, None]), axes, angles, strict=True):
        np.testing.assert_allclose(euler_to_matrix(row), rotation_about(axis, angle), atol=1e-9)
