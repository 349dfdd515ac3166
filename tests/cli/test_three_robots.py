"""Three robots' conventions, from a recording to a client: units, sign, rate and camera geometry arrive as they began."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

from rfedge.data import CalvinDataset
from rfedge.data.conversion import ConversionOptions, convert_dataset
from rfedge.export.options import ExportOptions
from rfedge.export.pipeline import export_checkpoint
from rfedge.messages import Observation
from rfedge.robot.rotations import euler_to_matrix, matrix_to_euler, rotation_about, rotation_vector
from rfedge.runtimes import EdgePolicy, RuntimeSettings
from rfedge.runtimes.adapters.lerobot import LeRobotKeys, action_to_lerobot
from rfedge.runtimes.backends.registry import open_parts
from rfedge.runtimes.server.client import RemotePolicy
from rfedge.train import train_config, train_policy
from tests.runtimes.server.running_server import GatedPolicy, ask, client, running
from tests.synthetic_demonstrations import NEUTRAL_STATE

NUM_FRAMES = 24


@dataclass(frozen=True)
class RobotKind:
    """How one robot records: rate, pictures (height, width), units of an action, gripper's commands (closed, open)."""

    hz: float
    size: tuple[int, int]
    resize: str
    actions: str
    rotation: str
    position_m: float
    rotation_rad: float
    gripper: str
    closed: float
    opened: float


ROBOTS = {
    "LIBERO-like": RobotKind(20.0, (128, 128), "crop", "relative", "axis-angle", 0.05, 0.5, "open-1-close1", 1.0, -1.0),
    "ALOHA-like": RobotKind(50.0, (480, 640), "pad", "absolute", "axis-angle", 1.0, 1.0, "close0-open1", 0.0, 1.0),
    "DROID-like": RobotKind(15.0, (180, 320), "stretch", "relative", "euler", 0.02, 0.05, "open0-close1", 1.0, 0.0),
}


@dataclass(frozen=True)
class Recording:
    path: Path
    pictures: np.ndarray
    actions: np.ndarray  # as the robot got them
    states: np.ndarray
    steps: np.ndarray  # (T - 1, 6) motion in m and rad of Euler angles


def record(path: Path, kind: RobotKind) -> Recording:
    """An arm, turned by a quarter about z, that follows its commands exactly; the gripper closes half-way."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(-1, 1, (5, 6)) * ([0.006] * 3 + [0.012] * 3)
    motion = np.stack([np.interp(np.arange(NUM_FRAMES), np.linspace(0, NUM_FRAMES, 5), c) for c in corners.T], axis=1)
    position, matrix = NEUTRAL_STATE[:3].copy(), euler_to_matrix(NEUTRAL_STATE[3:6])
    poses = []
    for step in motion:
        poses.append([*position, *matrix_to_euler(matrix)])
        position = position + step[:3]
        angle = float(np.linalg.norm(step[3:]))
        matrix = rotation_about(step[3:] / angle, angle) @ matrix
    poses = np.array([*poses, [*position, *matrix_to_euler(matrix)]])
    steps = np.diff(poses, axis=0)
    steps[:, 3:] = (steps[:, 3:] + np.pi) % (2 * np.pi) - np.pi
    actions = np.zeros((NUM_FRAMES, 7))
    if kind.actions == "absolute":
        actions[:, :3] = poses[1:, :3]
        actions[:, 3:6] = [rotation_vector(euler_to_matrix(row)) for row in poses[1:, 3:]]
    else:
        actions[:, :3] = steps[:, :3] / kind.position_m
        actions[:, 3:6] = (motion if kind.rotation == "axis-angle" else steps)[:, 3:] / kind.rotation_rad
    is_open = np.arange(NUM_FRAMES) < NUM_FRAMES // 2
    actions[:, 6] = np.where(is_open, kind.opened, kind.closed)
    states = np.tile(NEUTRAL_STATE, (NUM_FRAMES, 1))
    states[:, :6], states[:, 6] = poses[:-1], np.where(np.arange(NUM_FRAMES) < NUM_FRAMES // 2 + 2, 0.08, 0.01)
    pictures = rng.integers(0, 80, (NUM_FRAMES, *kind.size, 3), dtype=np.uint8)
    left = kind.size[1] // 4
    pictures[:, :, left - kind.size[1] // 40 : left + kind.size[1] // 40] = 255  # a post at a quarter of the width
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["fps"] = kind.hz
        for number in range(2):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["instruction"] = "pour the water"  # no task of CALVIN's
            demo["robot_obs"], demo["rel_actions"] = states, actions
            demo["rgb_static"] = demo["rgb_gripper"] = pictures
    return Recording(path, pictures, actions, states, steps)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROBOTS)
def test_conventions_arrive_as_they_began(name: str, tmp_path: Path) -> None:
    kind = ROBOTS[name]
    recording = record(tmp_path / "recording.hdf5", kind)
    options = ConversionOptions(
        actions=kind.actions,
        rotation=kind.rotation,
        position_scale_m=kind.position_m if kind.actions == "relative" else None,
        rotation_scale_rad=kind.rotation_rad if kind.actions == "relative" else None,
        gripper=kind.gripper,
        fps=kind.hz,
        resize=kind.resize,
    )
    result = convert_dataset(recording.path, "hdf5", tmp_path / "data", options)
    assert result.frequency_hz == kind.hz
    assert result.motion_factors == pytest.approx({"translation": 1.0, "rotation": 1.0}, abs=0.01)
    dataset = CalvinDataset.open(tmp_path / "data")
    frames = [dataset.frame(number) for number in range(NUM_FRAMES)]
    rel_actions = np.array([frame["rel_actions"] for frame in frames])
    np.testing.assert_allclose(rel_actions[:, :6] * ([0.02] * 3 + [0.05] * 3), recording.steps, atol=1e-9)

    config = train_config("tiny", data=tmp_path / "data", output=tmp_path / "run", policy_changes={}, steps=1,
                          head_first_steps=0, batch_size=2)  # fmt: skip
    train_policy(config)
    export = ExportOptions(precision="fp32", data=tmp_path / "data", num_parity_steps=4)
    manifest = export_checkpoint(tmp_path / "run/checkpoint", tmp_path / "bundle", export).manifest
    assert (manifest.policy.control_hz, manifest.policy.resize) == (kind.hz, kind.resize)

    settings = RuntimeSettings(threads=1)
    with EdgePolicy.load(tmp_path / "bundle", settings=settings) as policy:
        policy.reset("pour the water")
        expected = policy.act(Observation(frames[3]["rgb_static"], frames[3]["rgb_gripper"])).actions
    parts = open_parts("onnxruntime", tmp_path / "bundle", settings)
    with GatedPolicy(parts) as served, running(served, resize=True) as (_, url):
        with RemotePolicy(url) as remote:
            assert (remote.conventions.control_hz, remote.conventions.resize) == (kind.hz, kind.resize)
            said = remote.metadata["action"]
        with client(url) as connection:  # the robot's own pictures: the server cuts them as the converter did
            raw = recording.pictures[3]
            sent = {"observation/image": raw, "observation/wrist_image": raw, "prompt": "pour the water"}
            answer = ask(connection, sent)
    assert isinstance(answer, dict)
    np.testing.assert_allclose(answer["actions"], expected, atol=0.02)
    assert (said["position_scale_m"], said["rotation_scale_rad"], said["gripper"]) == (0.02, 0.05, "-1 close, 1 open")

    # Out to the robot that recorded: what it gets is what it was sent then.
    for step in range(NUM_FRAMES):
        keys = LeRobotKeys(
            metres_per_unit=kind.position_m, radians_per_unit=kind.rotation_rad, gripper_closed=kind.closed,
            gripper_open=kind.opened,
        )  # fmt: skip
        euler = recording.states[step, 3:6]
        out = np.array(list(action_to_lerobot(rel_actions[step].astype(np.float32), keys, euler).values()))
        assert out[6] == recording.actions[step, 6]
        if kind.actions == "absolute":
            np.testing.assert_allclose(recording.states[step, :3] + out[:3], recording.actions[step, :3], atol=1e-6)
            reached = rotation_about(out[3:6] / np.linalg.norm(out[3:6]), np.linalg.norm(out[3:6])) @ euler_to_matrix(euler)
            target = recording.actions[step, 3:6]
            right = rotation_about(target / np.linalg.norm(target), float(np.linalg.norm(target)))
            np.testing.assert_allclose(reached, right, atol=1e-6)
        elif kind.rotation == "axis-angle":
            np.testing.assert_allclose(out[:6], recording.actions[step, :6], atol=1e-6)
        else:
            np.testing.assert_allclose(out[:3], recording.actions[step, :3], atol=1e-6)
