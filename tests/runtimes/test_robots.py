"""The robots that come with rfedge, the adapters' arithmetic, and the template."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from rfedge.data.calvin import CalvinDataset
from rfedge.errors import BackendUnavailableError, ConfigError, ContractError
from rfedge.messages import Observation
from rfedge.runtimes.adapters.images import fit_camera
from rfedge.runtimes.adapters.lerobot import LeRobotKeys, LeRobotRobot, connect_lerobot
from rfedge.runtimes.adapters.ros2 import Ros2Robot, Ros2Settings, image_from_message, state_from_pose, twist_of_action
from rfedge.runtimes.control import ControlLoop
from rfedge.runtimes.modes import OpenLoop
from rfedge.runtimes.recorded_episode import RecordedEpisodeRobot, RecordedFrames
from rfedge.runtimes.rerun_log import RerunLog
from rfedge.runtimes.robot import SimulatedRobot
from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle
from tests.runtimes.loop_parts import FRAME, CountingPolicy
from tests.synthetic_demonstrations import write_demonstrations

ROOT = Path(__file__).parent.parent.parent
ACTION = np.array([0.5, -1.0, 0.0, 0.2, 0.0, -0.4, -1.0], dtype=np.float32)


def test_a_recorded_episode_shows_its_frames_and_does_not_move(tmp_path: Path) -> None:
    dataset = CalvinDataset.open(write_demonstrations(tmp_path, episodes_per_task=1, num_frames=6))
    frames = RecordedFrames(dataset, dataset.segments[1])
    robot = RecordedEpisodeRobot.open(tmp_path, 1)
    seen: list[Observation] = []
    loop = ControlLoop(OpenLoop(CountingPolicy(), 2), robot)
    loop.run("go", max_steps=8, on_step=lambda step: seen.extend([step.observation] if step.observation else []))
    assert len(seen) == 4
    for observation, index in zip(seen, (0, 2, 4, 5), strict=True):  # the last frame stays
        np.testing.assert_array_equal(observation.static, frames[index].static)
        np.testing.assert_array_equal(observation.state, frames[index].state)
    assert frames[0].task == dataset.segments[1].instruction
    assert (len(robot.sent), robot.num_stops) == (8, 1)
    assert frames.rel_actions().shape == (6, 7)
    with pytest.raises(IndexError):
        frames[6]
    with pytest.raises(ConfigError, match=r"segment: got 9, expected 0 to \d+"):
        RecordedEpisodeRobot.open(tmp_path, 9)
    with pytest.raises(ConfigError, match="recorded episode: got no frames"):
        RecordedEpisodeRobot([])


def test_a_simulated_robot_stops_with_its_gripper_held() -> None:
    state = np.zeros(15)
    state[-1] = -1.0
    sent: list[np.ndarray] = []
    plant = SimpleNamespace(
        observe=lambda: Observation(static=FRAME.static, gripper=FRAME.gripper, state=state), advance=sent.append
    )
    robot = SimulatedRobot(plant)
    robot.stop()
    assert sent == [], "before the first frame nobody knows how to hold"
    robot.observe()
    robot.stop()
    robot.apply(np.array([0.1] * 6 + [1.0], dtype=np.float32))
    robot.stop()
    assert [action.tolist() for action in (sent[0], sent[2])] == [[0] * 6 + [-1], [0] * 6 + [1]]
    assert sent[1].dtype == np.float64


def test_cameras_are_cut_to_their_middle_and_copied() -> None:
    image = np.zeros((100, 160, 3), dtype=np.uint8)
    image[:, 30:130] = 200
    fitted = fit_camera("front", image, (200, 200, 3))
    assert (fitted.shape, fitted.min(), fitted.max()) == ((200, 200, 3), 200, 200)
    exact = np.ones((84, 84, 3), dtype=np.uint8)
    copy = fit_camera("wrist", exact, (84, 84, 3))
    exact[:] = 9
    assert copy.max() == 1
    with pytest.raises(ContractError, match=r"camera 'front': got float64 \(4, 4, 3\), expected uint8 \(height, width, 3\)"):
        fit_camera("front", np.zeros((4, 4, 3)), (200, 200, 3))


class LeArm:
    """A LeRobot robot that takes deltas."""

    def __init__(self, *missing: str) -> None:
        names = ("delta_x", "delta_y", "delta_z", "delta_rx", "delta_ry", "delta_rz", "gripper")
        self.action_features = {name: float for name in names if name not in missing}
        self.sent: list[dict[str, float]] = []
        self.fields = {
            "front": np.zeros((480, 640, 3), np.uint8),
            "wrist": np.zeros((84, 84, 3), np.uint8),
            **{f"s{i}": float(i) for i in range(15)},
        }

    def get_observation(self) -> dict[str, object]:
        return self.fields

    def send_action(self, action: dict[str, float]) -> None:
        self.sent.append(action)


def test_lerobot_speaks_in_its_own_names_and_units() -> None:
    arm = LeArm()
    keys = LeRobotKeys(state=tuple(f"s{i}" for i in range(15)), metres_per_unit=0.01, gripper_closed=2.0, gripper_open=5.0)
    robot = LeRobotRobot(arm, keys)
    observation = robot.observe()
    observation.check()
    np.testing.assert_array_equal(observation.state, np.arange(15.0))
    robot.stop()
    assert arm.sent == []
    robot.apply(ACTION)
    expected = {"delta_x": 1.0, "delta_y": -2.0, "delta_z": 0.0, "delta_rx": 0.01, "delta_ry": 0.0, "delta_rz": -0.02}
    assert arm.sent[0] == pytest.approx(expected | {"gripper": 2.0})
    robot.stop()
    assert arm.sent[1] == dict.fromkeys(expected, 0.0) | {"gripper": 2.0}
    del arm.fields["wrist"]
    with pytest.raises(ContractError, match=r"LeRobot observation: got keys .*, expected also \['wrist'\]"):
        robot.observe()
    with pytest.raises(ConfigError, match=r"LeRobot action: got a robot that takes .*, expected also \['delta_rz'\]"):
        LeRobotRobot(LeArm("delta_rz"))
    with pytest.raises(ConfigError, match=r"LeRobotKeys.state: got 2 names, expected 0 or 15"):
        LeRobotKeys(state=("a", "b"))


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8"])
def test_ros_images_are_read_in_every_encoding(encoding: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    if encoding == "mono8":
        rgb[:] = rgb[..., :1]
    channels = {"rgb": [0, 1, 2], "bgr": [2, 1, 0]}.get(encoding[:3], [0])
    pixels = rgb[..., channels]
    if encoding.endswith("a8"):
        pixels = np.concatenate([pixels, np.full((3, 4, 1), 7, np.uint8)], axis=-1)
    step = pixels.shape[1] * pixels.shape[2] + 5  # rows may be padded
    rows = np.concatenate([pixels.reshape(3, -1), np.zeros((3, 5), np.uint8)], axis=1)
    message = SimpleNamespace(encoding=encoding, height=3, width=4, step=step, data=rows.tobytes())
    np.testing.assert_array_equal(image_from_message(message), rgb)
    message.data = message.data[:-1]
    with pytest.raises(ContractError, match="image message: got .* bytes in rows of"):
        image_from_message(message)
    message.encoding = "16UC1"
    with pytest.raises(ContractError, match="image message: got encoding '16UC1', expected one of rgb8, bgr8"):
        image_from_message(message)


def test_ros_poses_and_twists() -> None:
    from rfedge.envs.rotations import euler_to_quaternion

    euler = np.array([0.3, -0.5, 2.0])
    x, y, z, w = euler_to_quaternion(euler)
    pose = SimpleNamespace(position=SimpleNamespace(x=0.1, y=0.2, z=0.3), orientation=SimpleNamespace(x=x, y=y, z=z, w=w))
    state = state_from_pose(pose, -1.0)
    np.testing.assert_allclose(state[:6], [0.1, 0.2, 0.3, *euler], atol=1e-9)
    assert (state.shape, state[-1]) == ((15,), -1.0)
    linear, angular = twist_of_action(ACTION, 30.0)
    np.testing.assert_allclose(linear, [0.3, -0.6, 0.0], atol=1e-6)
    np.testing.assert_allclose(angular, [0.3, 0.0, -0.6], atol=1e-6)


class StandInRos:
    """Enough of rclpy to subscribe and publish; messages are handed over by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.callbacks: dict[str, object] = {}
        self.published: list[tuple[str, object]] = []

        def vector() -> SimpleNamespace:
            return SimpleNamespace(x=0.0, y=0.0, z=0.0)

        def twist() -> SimpleNamespace:
            both = SimpleNamespace(linear=vector(), angular=vector())
            return SimpleNamespace(header=SimpleNamespace(stamp=None, frame_id=""), twist=both)

        clock = SimpleNamespace(now=lambda: SimpleNamespace(to_msg=lambda: "now"))
        node = SimpleNamespace(
            create_subscription=lambda kind, topic, receive, depth: self.callbacks.update({topic: receive}),
            create_publisher=lambda kind, topic, depth: SimpleNamespace(
                publish=lambda message: self.published.append((topic, message))
            ),
            get_clock=lambda: clock,
            destroy_node=lambda: None,
        )
        executor = SimpleNamespace(add_node=lambda node: None, spin=lambda: None, shutdown=lambda: None)
        modules = {
            "rclpy": {
                "init": lambda context: None,
                "create_node": lambda name, context: node,
                "shutdown": lambda context: None,
            },
            "rclpy.context": {"Context": object},
            "rclpy.executors": {"SingleThreadedExecutor": lambda context: executor},
            "sensor_msgs.msg": {"Image": object},
            "geometry_msgs.msg": {"TwistStamped": twist, "PoseStamped": object},
            "std_msgs.msg": {"Float64MultiArray": SimpleNamespace},
        }
        for name, members in modules.items():
            module = ModuleType(name)
            vars(module).update(members)
            monkeypatch.setitem(sys.modules, name, module)

    def show(self, topic: str, value: int) -> None:
        image = np.full((84, 84, 3), value, np.uint8)
        message = SimpleNamespace(encoding="rgb8", height=84, width=84, step=252, data=image.tobytes())
        self.callbacks[topic](message)  # type: ignore[operator]


def test_a_ros_robot_subscribes_publishes_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    ros, settings = StandInRos(monkeypatch), Ros2Settings(max_age_s=0.01)
    with Ros2Robot(settings) as robot:
        with pytest.raises(
            BackendUnavailableError, match="topic /static_camera/image_raw: got no message, expected one in 0.01"
        ):
            robot.observe()
        monkeypatch.setattr("rfedge.runtimes.adapters.ros2.time.monotonic", lambda: 5.0)
        ros.show(settings.static_topic, 50)
        ros.show(settings.gripper_topic, 60)
        observation = robot.observe()
        observation.check()
        assert (observation.static.max(), observation.gripper.max(), observation.state) == (50, 60, None)
        robot.apply(ACTION)
        robot.apply(ACTION)
        monkeypatch.setattr("rfedge.runtimes.adapters.ros2.time.monotonic", lambda: 6.0)
        with pytest.raises(BackendUnavailableError, match=r"topic /static_camera/image_raw: got none for 1.0 s"):
            robot.observe()
    topics = [topic for topic, _ in ros.published]
    assert topics == [settings.gripper_command_topic, *[settings.twist_topic] * 3], "the gripper is sent when it changes"
    assert ros.published[0][1].data == [0.0]  # type: ignore[attr-defined]
    moved, stopped = ros.published[1][1], ros.published[3][1]
    assert (moved.header.frame_id, moved.twist.linear.x) == ("world", pytest.approx(0.3))  # type: ignore[attr-defined]
    assert vars(stopped.twist.linear) == vars(stopped.twist.angular) == {"x": 0.0, "y": 0.0, "z": 0.0}  # type: ignore[attr-defined]


def test_missing_frameworks_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("rclpy", "lerobot", "rerun"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        BackendUnavailableError, match="ROS 2 robot: got no module 'rclpy', expected an installed rclpy. Source"
    ):
        Ros2Robot()
    with pytest.raises(BackendUnavailableError, match="LeRobot robot: got no module 'lerobot"):
        connect_lerobot(None)
    with pytest.raises(
        BackendUnavailableError, match=r"--rerun run.rrd: got no module 'rerun', .* pip install 'rfedge\[viewer\]'"
    ):
        RerunLog(tmp_path / "run.rrd")
    with pytest.raises(ConfigError, match="--rerun: got 'run.txt', expected a name ending in .rrd"):
        RerunLog(tmp_path / "run.txt")


def test_rerun_takes_every_step(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="the viewer extra is not installed")
    with RerunLog(tmp_path / "run.rrd") as log:
        ControlLoop(OpenLoop(CountingPolicy(), 2), RecordedEpisodeRobot([FRAME])).run("go", max_steps=4, on_step=log.add)
    assert (tmp_path / "run.rrd").stat().st_size > 1000


class Driver:
    """What the template asks of an arm; it is where it was sent."""

    def __init__(self) -> None:
        self.pose = np.array([0.0, 0.0, 0.5, 0.0, 0.0, 0.0])
        self.steps_m: list[np.ndarray] = []
        self.grippers: list[bool] = []
        self.num_halts = 0

    def static_image(self) -> np.ndarray:
        return np.full((480, 640, 3), 80, np.uint8)

    def wrist_image(self) -> np.ndarray:
        return np.full((240, 320, 3), 90, np.uint8)

    def tool_pose(self) -> np.ndarray:
        return self.pose

    def joint_angles(self) -> np.ndarray:
        return np.zeros(7)

    def gripper_width_m(self) -> float:
        return 0.04

    def move_tool_by(self, translation_m: np.ndarray, rotation_rad: np.ndarray) -> None:
        self.steps_m.append(translation_m)
        self.pose = self.pose + np.r_[translation_m, rotation_rad]

    def move_gripper(self, *, opened: bool) -> None:
        self.grippers.append(opened)

    def halt(self) -> None:
        self.num_halts += 1

    def set_command_timeout(self, seconds: float) -> None:
        self.timeout_s = seconds


def test_the_template_drives_an_arm(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("robot_template", ROOT / "examples" / "robot_template.py")
    assert spec is not None
    assert spec.loader is not None
    template = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(template)
    write_handmade_bundle(tmp_path / "b", tiny_config())
    driver = Driver()
    summary = template.run_arm(driver, tmp_path / "b", "open the drawer", max_steps=40, rate_hz=1000.0)
    assert (summary.ended, summary.num_steps, driver.num_halts) in {("max-steps", 40, 1), ("misses", summary.num_steps, 1)}
    assert len(driver.steps_m) == summary.num_steps
    assert max(np.linalg.norm(step) for step in driver.steps_m) <= 0.01 + 1e-8
    box = template.LIMITS.workspace
    assert (np.array(box.low_m) - 1e-8 <= driver.pose[:3]).all()
    assert (driver.pose[:3] <= np.array(box.high_m) + 1e-8).all()
    assert len(driver.grippers) <= summary.num_steps
    assert driver.timeout_s == pytest.approx(0.01)
