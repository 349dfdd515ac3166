"""The robots that come with rfedge, the adapters' arithmetic, and the template."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from rfedge.data.calvin import CalvinDataset
from rfedge.errors import BackendUnavailableError, ConfigError, ContractError
from rfedge.messages import Observation
from rfedge.robot.rotations import euler_to_matrix, euler_to_quaternion, rotation_about, rotation_vector, rotation_vectors
from rfedge.runtimes.adapters.conversion import fit_camera
from rfedge.runtimes.adapters.lerobot import LeRobotKeys, LeRobotRobot, action_to_lerobot, connect_lerobot
from rfedge.runtimes.adapters.ros2 import Ros2Robot, Ros2Settings, image_from_message, state_from_pose, twist_of_action
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import OpenLoop
from rfedge.runtimes.control.robot import SimulatedRobot
from rfedge.runtimes.rollout.recorded_episode import RecordedEpisodeRobot, RecordedFrames, recorded_actions
from rfedge.runtimes.rollout.rerun_log import RerunLog
from tests.errors import raises
from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle
from tests.runtimes.loop_parts import FRAME, CountingPolicy, FakeClock
from tests.synthetic_demonstrations import write_demonstrations

ROOT = Path(__file__).parent.parent.parent
ACTION = np.array([0.5, -1.0, 0.0, 0.2, 0.0, -0.4, -1.0], dtype=np.float32)


def test_a_recorded_episode_shows_its_frames_and_does_not_move(tmp_path: Path) -> None:
    dataset = CalvinDataset.open(write_demonstrations(tmp_path, episodes_per_task=1, num_frames=6))
    frames = RecordedFrames.of(dataset, dataset.segments[1])
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
    assert recorded_actions(dataset, dataset.segments[1]).shape == (6, 7)
    with pytest.raises(IndexError):
        frames[6]
    with raises(ConfigError, "segment", got=9, expected="0 to ..."):
        RecordedEpisodeRobot.open(tmp_path, 9)
    with raises(ConfigError, "recorded episode", got="no frames"):
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
    with raises(ContractError, "camera 'front'", got="float64 (4, 4, 3)", expected="uint8 (height, width, 3) RGB"):
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
    names = ("delta_x", "delta_y", "delta_z", "delta_rx", "delta_ry", "delta_rz")
    turn = rotation_vectors(np.array([3.0, 4.0, 5.0]), 0.05 * ACTION[3:6].astype(float))
    expected = dict(zip(names, (1.0, -2.0, 0.0, *turn), strict=True))
    assert arm.sent[0] == pytest.approx(expected | {"gripper": 2.0})
    robot.apply(ACTION)  # the tool has turned since the frame
    turn = rotation_vectors(np.array([3.01, 4.0, 4.98]), 0.05 * ACTION[3:6].astype(float))
    assert arm.sent[1]["delta_ry"] == pytest.approx(turn[1])
    robot.stop()
    assert arm.sent[2] == dict.fromkeys(expected, 0.0) | {"gripper": 2.0}
    del arm.fields["wrist"]
    with raises(ContractError, "LeRobot observation", got="keys ...", expected="also ['wrist']"):
        robot.observe()
    with raises(ConfigError, "LeRobot action", got="a robot that takes ...", expected="also ['delta_rz']"):
        LeRobotRobot(LeArm("delta_rz"))
    with raises(ConfigError, "LeRobotKeys.state", got="2 names", expected="0 or 15"):
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
    with raises(ContractError, "image message", got="... bytes in rows of..."):
        image_from_message(message)
    message.encoding = "16UC1"
    with raises(ContractError, "image message", got="encoding '16UC1'", expected="one of rgb8, bgr8..."):
        image_from_message(message)


def test_ros_poses_and_twists() -> None:
    euler = np.array([0.3, -0.5, 2.0])
    x, y, z, w = euler_to_quaternion(euler)
    pose = SimpleNamespace(position=SimpleNamespace(x=0.1, y=0.2, z=0.3), orientation=SimpleNamespace(x=x, y=y, z=z, w=w))
    state = state_from_pose(pose, -1.0)
    np.testing.assert_allclose(state[:6], [0.1, 0.2, 0.3, *euler], atol=1e-9)
    assert (state.shape, state[-1]) == ((15,), -1.0)
    linear, angular = twist_of_action(ACTION, 30.0, np.zeros(3))
    np.testing.assert_allclose(linear, [0.3, -0.6, 0.0], atol=1e-6)
    np.testing.assert_allclose(angular, [0.3, 0.0, -0.6], atol=0.01)
    straight = np.array([0.5, 0, 0, 0, 0, 0, 1], dtype=np.float32)
    assert twist_of_action(straight, 30.0) == (pytest.approx((0.3, 0, 0)), (0, 0, 0)), "no turn needs no orientation"


class StandInRos:
    """Enough of rclpy to subscribe and publish; messages are handed over by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.callbacks: dict[str, object] = {}
        self.qualities: dict[str, object] = {}
        self.published: list[tuple[str, object]] = []

        def vector() -> SimpleNamespace:
            return SimpleNamespace(x=0.0, y=0.0, z=0.0)

        def twist() -> SimpleNamespace:
            both = SimpleNamespace(linear=vector(), angular=vector())
            return SimpleNamespace(header=SimpleNamespace(stamp=None, frame_id=""), twist=both)

        clock = SimpleNamespace(now=lambda: SimpleNamespace(to_msg=lambda: "now"))
        node = SimpleNamespace(
            create_subscription=lambda kind, topic, receive, qos: self.subscribe(topic, receive, qos),
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
            "rclpy.qos": {"qos_profile_sensor_data": "best effort"},
            "rclpy.executors": {"SingleThreadedExecutor": lambda context: executor},
            "sensor_msgs.msg": {"Image": object},
            "geometry_msgs.msg": {"TwistStamped": twist, "PoseStamped": object},
            "std_msgs.msg": {"Float64MultiArray": SimpleNamespace},
        }
        for name, members in modules.items():
            module = ModuleType(name)
            vars(module).update(members)
            monkeypatch.setitem(sys.modules, name, module)

    def subscribe(self, topic: str, receive: object, qos: object) -> None:
        self.callbacks[topic], self.qualities[topic] = receive, qos

    def hand_over(self, topic: str, stamped_s: float, **message: object) -> None:
        stamp = SimpleNamespace(sec=int(stamped_s), nanosec=round(1e9 * (stamped_s % 1.0)))
        self.callbacks[topic](SimpleNamespace(header=SimpleNamespace(stamp=stamp), **message))  # type: ignore[operator]

    def show(self, topic: str, value: int, stamped_s: float = 0.0) -> None:
        image = np.full((84, 84, 3), value, np.uint8)
        self.hand_over(topic, stamped_s, encoding="rgb8", height=84, width=84, step=252, data=image.tobytes())

    def point(self, topic: str, euler_rad: np.ndarray) -> None:
        x, y, z, w = euler_to_quaternion(euler_rad)
        turn, place = SimpleNamespace(x=x, y=y, z=z, w=w), SimpleNamespace(x=0.0, y=0.0, z=0.5)
        self.hand_over(topic, 0.0, pose=SimpleNamespace(position=place, orientation=turn))


def test_a_ros_robot_subscribes_publishes_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    ros, settings = StandInRos(monkeypatch), Ros2Settings(max_age_s=0.01, pose_topic="/pose")
    with Ros2Robot(settings) as robot:
        assert ros.qualities == dict.fromkeys((settings.static_topic, settings.gripper_topic, "/pose"), "best effort")
        with raises(BackendUnavailableError, "topic /static_camera/image_raw", got="no message", expected="one in 0.01 s"):
            robot.observe()
        monkeypatch.setattr("rfedge.runtimes.adapters.ros2.time.monotonic", lambda: 5.0)
        ros.show(settings.static_topic, 50)
        ros.show(settings.gripper_topic, 60)
        ros.point("/pose", np.array([0.1, -0.2, 0.3]))
        observation = robot.observe()
        observation.check()
        assert (observation.static.max(), observation.gripper.max()) == (50, 60)
        np.testing.assert_allclose(observation.state[3:6], [0.1, -0.2, 0.3], atol=1e-9)
        robot.apply(ACTION)
        robot.apply(ACTION)
        monkeypatch.setattr("rfedge.runtimes.adapters.ros2.time.monotonic", lambda: 6.0)
        with raises(BackendUnavailableError, "topic /static_camera/image_raw", got="none newer than 1.0 s"):
            robot.observe()
    topics = [topic for topic, _ in ros.published]
    assert topics == [settings.gripper_command_topic, *[settings.twist_topic] * 3], "the gripper is sent when it changes"
    assert ros.published[0][1].data == [0.0]  # type: ignore[attr-defined]
    moved, stopped = ros.published[1][1], ros.published[3][1]
    assert (moved.header.frame_id, moved.twist.linear.x) == ("world", pytest.approx(0.3))  # type: ignore[attr-defined]
    assert vars(stopped.twist.linear) == vars(stopped.twist.angular) == {"x": 0.0, "y": 0.0, "z": 0.0}  # type: ignore[attr-defined]


def test_a_ros_robot_without_a_pose_does_not_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    ros = StandInRos(monkeypatch)
    with Ros2Robot() as robot:
        with raises(ContractError, "rotation of an action", got="no measured orientation of the tool"):
            robot.apply(ACTION)
        assert ros.published == [], "not even the gripper moved"


def test_ages_count_from_the_stamps_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    ros, settings = StandInRos(monkeypatch), Ros2Settings(max_age_s=0.05)
    monkeypatch.setattr("rfedge.runtimes.adapters.ros2.time.time_ns", lambda: 1_000_000_000_000)
    with Ros2Robot(settings) as robot:
        for stamped_s, got in (
            (999.99, ""),
            (998.0, "none newer than ... s"),
            (1002.0, "a stamp ... s ahead of this clock"),
        ):
            for topic in (settings.static_topic, settings.gripper_topic):
                ros.show(topic, 50, stamped_s)
            if not got:
                robot.observe()
                continue
            with raises(BackendUnavailableError, got=got, remedy="...not frozen, and that both machines' clocks agree..."):
                robot.observe()
    with Ros2Robot(Ros2Settings(uses_stamps=False)) as robot:
        for topic in (settings.static_topic, settings.gripper_topic):
            ros.show(topic, 50, 12.5)  # a simulator's clock
        robot.observe()


def test_a_lerobot_camera_that_repeats_its_picture_is_refused() -> None:
    clock, arm = FakeClock(), LeArm()
    robot = LeRobotRobot(arm, LeRobotKeys(max_age_s=0.5), clock=clock)
    for number in range(5):
        arm.fields = {**arm.fields, "front": np.full((480, 640, 3), number, np.uint8)}
        if number < 2:
            arm.fields["wrist"] = np.full((84, 84, 3), number, np.uint8)
        clock.time_s += 0.2
        if number < 4:
            robot.observe()
    with raises(BackendUnavailableError, "camera 'wrist'", got="the same picture for 0.6 s", expected="a new..."):
        robot.observe()
    simulated = LeRobotRobot(arm, LeRobotKeys(max_age_s=None), clock=clock)
    for _ in range(5):
        clock.time_s += 0.2
        simulated.observe()


# e = (3.09, -0.03, 1.5), as CALVIN starts an episode: the tool points down, turned by a quarter about z.
NEUTRAL_EULER = np.array([3.09, -0.029, 1.5])
AXES = {3: [0.071, 0.997, 0.029], 4: [-0.998, 0.071, 0.0], 5: [0.0, 0.0, 1.0]}


@pytest.mark.parametrize("element", AXES)
def test_a_step_of_euler_angles_leaves_as_a_rotation_vector(element: int, monkeypatch: pytest.MonkeyPatch) -> None:
    action = np.zeros(7, dtype=np.float32)
    action[element], action[6] = 1.0, 1.0
    _, angular = twist_of_action(action, 30.0, NEUTRAL_EULER)
    np.testing.assert_allclose(np.array(angular) / 30.0 / 0.05, AXES[element], atol=0.03)
    np.testing.assert_allclose(
        euler_to_matrix(NEUTRAL_EULER + 0.05 * action[3:6]), turned(np.array(angular) / 30.0), atol=1e-9
    )
    sent = action_to_lerobot(action, LeRobotKeys(radians_per_unit=0.5), NEUTRAL_EULER)
    np.testing.assert_allclose(0.5 * np.array(list(sent.values())[3:6]) / 0.05, AXES[element], atol=0.03)
    ros = StandInRos(monkeypatch)
    with Ros2Robot(Ros2Settings(pose_topic="/pose")) as robot:
        ros.point("/pose", NEUTRAL_EULER)
        robot.apply(action)
    twist = ros.published[1][1].twist  # type: ignore[attr-defined]
    np.testing.assert_allclose([twist.angular.x, twist.angular.y, twist.angular.z], angular, atol=1e-9)
    with raises(ContractError, got="no measured orientation of the tool"):
        action_to_lerobot(action, LeRobotKeys())


def turned(vector_rad: np.ndarray) -> np.ndarray:
    angle = float(np.linalg.norm(vector_rad))
    return rotation_about(vector_rad / angle, angle) @ euler_to_matrix(NEUTRAL_EULER)


def test_a_lerobot_robot_may_report_its_orientation_alone() -> None:
    arm = LeArm()
    vector = rotation_vector(euler_to_matrix(NEUTRAL_EULER))
    arm.fields |= dict(zip(("wx", "wy", "wz"), vector, strict=True))
    robot = LeRobotRobot(arm, LeRobotKeys(rotation=("wx", "wy", "wz"), rotation_form="axis-angle"))
    assert robot.observe().state is None
    robot.apply(np.array([0, 0, 0, 1, 0, 0, 1], dtype=np.float32))
    np.testing.assert_allclose(np.array(list(arm.sent[0].values())[3:6]) / 0.05, AXES[3], atol=0.03)
    with raises(ConfigError, "LeRobotKeys.rotation_form", got="'quat'", expected="one of euler, axis-angle"):
        LeRobotKeys(rotation_form="quat")


def test_missing_frameworks_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("rclpy", "lerobot", "rerun"):
        monkeypatch.setitem(sys.modules, module, None)
    with raises(BackendUnavailableError, "ROS 2 robot", got="no module 'rclpy'", expected="an installed rclpy"):
        Ros2Robot()
    with raises(BackendUnavailableError, "LeRobot robot", got="no module 'lerobot.robots'"):
        connect_lerobot(None)
    with raises(BackendUnavailableError, "--rerun run.rrd", got="no module 'rerun'"):
        RerunLog(tmp_path / "run.rrd")
    with raises(ConfigError, "--rerun", got="'run.txt'", expected="a name ending in .rrd"):
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
    template = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(template)
    write_handmade_bundle(tmp_path / "b", tiny_config())
    driver = Driver()
    summary = template.run_arm(driver, tmp_path / "b", "open the drawer", max_steps=40, speed=1000.0 / 30.0)
    assert (summary.ended, summary.num_steps, driver.num_halts) in {("max-steps", 40, 1), ("misses", summary.num_steps, 1)}
    assert len(driver.steps_m) == summary.num_steps
    assert max(np.linalg.norm(step) for step in driver.steps_m) <= 0.01 + 1e-8
    box = template.LIMITS.workspace
    assert (np.array(box.low_m) - 1e-8 <= driver.pose[:3]).all()
    assert (driver.pose[:3] <= np.array(box.high_m) + 1e-8).all()
    assert len(driver.grippers) <= summary.num_steps
    assert driver.timeout_s == pytest.approx(0.01)
