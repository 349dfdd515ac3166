"""A policy's rate and camera geometry are used by the loop and by robots, or they are refused before anything moves."""

from types import SimpleNamespace

import numpy as np
import pytest

from rfedge.errors import ConfigError
from rfedge.robot.conventions import Conventions, conventions_of, refuse_disagreement
from rfedge.runtimes import RateKeeper
from rfedge.runtimes.adapters.lerobot import LeRobotKeys, LeRobotRobot
from rfedge.runtimes.adapters.ros2 import Ros2Settings
from rfedge.runtimes.control.ensembling import TemporalEnsemble
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import ClosedLoop, JumpStep, OpenLoop
from rfedge.runtimes.control.overlapped import Overlapped
from rfedge.runtimes.control.robot import SimulatedRobot
from rfedge.runtimes.rollout.recorded_episode import RecordedEpisodeRobot
from tests.errors import raises
from tests.runtimes.loop_parts import FRAME, CountingPolicy, FakeClock, Robot


class TenHertzPolicy(CountingPolicy):
    conventions = Conventions(10.0, "stretch")


class StatingRobot(Robot):
    def __init__(self, conventions: Conventions) -> None:
        super().__init__()
        self.conventions = conventions


def run(robot: Robot | SimulatedRobot, rate_hz: float | None = None, speed: float = 1.0) -> None:
    clock = FakeClock()
    pace = None if rate_hz is None else RateKeeper(rate_hz, clock)
    ControlLoop(ClosedLoop(TenHertzPolicy()), robot, pace=pace, clock=clock, speed=speed).run("go", max_steps=3)


@pytest.mark.parametrize(
    ("conventions", "rate_hz", "speed", "subject", "got", "expected"),
    [
        (Conventions(), 30.0, 1.0, "control rate of the loop", "30 Hz", "10 Hz, that of the policy"),
        (Conventions(), 10.0, 0.5, "control rate of the loop", "10 Hz", "5 Hz, that of the policy at speed 0.5"),
        (Conventions(30.0), 10.0, 1.0, "control rate of the robot", "30 Hz", "10 Hz, that of the policy"),
        (Conventions(10.0), 5.0, 0.5, "control rate of the robot", "10 Hz", "5 Hz, that of the policy at speed 0.5"),
        (Conventions(None, "crop"), None, 1.0, "camera geometry of the robot", "crop", "stretch, that of the policy"),
    ],
)
def test_a_loop_of_another_rate_or_geometry_is_refused(
    conventions: Conventions, rate_hz: float, speed: float, subject: str, got: str, expected: str
) -> None:
    robot = StatingRobot(conventions)
    with raises(ConfigError, subject, got=got, expected=expected):
        run(robot, rate_hz, speed)
    assert (robot.actions, robot.num_stops, robot.num_frames) == ([], 0, 0), "it was not touched"


@pytest.mark.parametrize(
    ("conventions", "rate_hz", "speed"),
    [
        (Conventions(), 10.0, 1.0),
        (Conventions(10.0, "stretch"), 10.0, 1.0),
        (Conventions(5.0, "stretch"), 5.0, 0.5),
        (Conventions(None, "stretch"), None, 1.0),
    ],
)
def test_a_loop_that_agrees_runs(conventions: Conventions, rate_hz: float | None, speed: float) -> None:
    robot = StatingRobot(conventions)
    run(robot, rate_hz, speed)
    assert len(robot.actions) == 3


def test_a_simulators_time_passes_with_actions() -> None:
    def plant(control_hz: int) -> SimpleNamespace:
        return SimpleNamespace(observe=lambda: FRAME, advance=lambda action: None, control_hz=control_hz)

    run(SimulatedRobot(plant(10)))
    run(SimulatedRobot(plant(10)), rate_hz=2.0, speed=0.2)
    with raises(ConfigError, "control rate of the robot", got="30 Hz", expected="10 Hz, that of the policy", remedy="An..."):
        run(SimulatedRobot(plant(30)), rate_hz=2.0, speed=0.2)


def test_controllers_and_ensembles_hand_on_what_a_policy_says() -> None:
    policy = TenHertzPolicy(chunk_size=8, frame_stride=4)
    for controller in (
        ClosedLoop(policy),
        OpenLoop(policy, 4),
        JumpStep(policy),
        Overlapped(policy),
        ClosedLoop(CountingPolicy()),
    ):
        expected = Conventions() if controller._policy is not policy else policy.conventions
        assert conventions_of(controller) == expected
        controller.close()
    assert TemporalEnsemble(policy, 2).conventions == policy.conventions


def test_ros_settings_take_the_policys_or_refuse() -> None:
    settings = Ros2Settings.for_policy(TenHertzPolicy(), pose_topic="/pose")
    assert (settings.rate_hz, settings.resize, settings.pose_topic) == (10.0, "stretch", "/pose")
    assert Ros2Settings.for_policy(TenHertzPolicy(), rate_hz=10.0).rate_hz == 10.0
    with raises(ConfigError, "control rate of Ros2Settings", got="30 Hz", expected="10 Hz, that of the policy"):
        Ros2Settings.for_policy(TenHertzPolicy(), rate_hz=30.0)
    with raises(ConfigError, "camera geometry of Ros2Settings", got="pad", expected="stretch, that of the policy"):
        Ros2Settings.for_policy(TenHertzPolicy(), resize="pad")
    with raises(ConfigError, "resize", got="'squeeze'", expected="one of crop, stretch, pad"):
        Ros2Settings(resize="squeeze")


def test_adapters_cut_pictures_as_they_are_told() -> None:
    scene = np.zeros((480, 640, 3), np.uint8)
    scene[:, 156:164] = 255
    keys = ("delta_x", "delta_y", "delta_z", "delta_rx", "delta_ry", "delta_rz", "gripper")
    arm = SimpleNamespace(
        action_features=dict.fromkeys(keys, float),
        get_observation=lambda: {"front": scene, "wrist": scene},
        send_action=lambda action: None,
    )
    for resize, column in (("crop", 32.8), ("stretch", 49.5)):
        robot = LeRobotRobot(arm, LeRobotKeys(resize=resize))
        row = robot.observe().static[100, :, 0].astype(float)
        assert (row * np.arange(200)).sum() / row.sum() == pytest.approx(column, abs=0.1)
        assert robot.conventions == Conventions(resize=resize)
    assert RecordedEpisodeRobot([FRAME], resize="pad").conventions == Conventions(resize="pad")


def test_what_nobody_says_disagrees_with_nothing() -> None:
    refuse_disagreement("a", Conventions(), "b", Conventions(30.0, "crop"))
    refuse_disagreement("a", Conventions(30.0, "crop"), "b", Conventions())
    refuse_disagreement("a", Conventions(29.97 * 1.0005), "b", Conventions(29.97))
