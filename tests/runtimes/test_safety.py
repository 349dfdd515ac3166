import numpy as np
import pytest

from rfedge.errors import ConfigError, ContractError
from rfedge.messages import Observation
from rfedge.robot.rotations import euler_to_matrix, rotation_vector
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import ClosedLoop
from rfedge.runtimes.control.safety import SafetyGuard, SafetyLimits, Workspace
from rfedge.runtimes.policy.step import PolicyStep
from tests.errors import raises
from tests.runtimes.loop_parts import FRAME, CountingPolicy, Robot

BOX = Workspace((-0.1, -0.2, 0.3), (0.1, 0.2, 0.5))


class OneAction(CountingPolicy):
    """Always wants the same."""

    def __init__(self, *action: float) -> None:
        super().__init__(chunk_size=1)
        self.action = np.array(action, dtype=np.float32)

    def act(self, observation: Observation) -> PolicyStep:
        return PolicyStep(actions=self.action[None], timings_ms={})


def _state(x: float = 0.0, y: float = 0.0, z: float = 0.4, gripper: float = 1.0) -> np.ndarray:
    return np.array([x, y, z, *np.zeros(11), gripper])


def _seen(state: np.ndarray) -> Observation:
    return Observation(static=FRAME.static, gripper=FRAME.gripper, state=state)


def test_steps_are_shortened_and_keep_their_direction() -> None:
    guard = SafetyGuard(SafetyLimits(max_step_m=0.01, max_step_rad=0.02))
    checked = guard.check(np.array([0.6, 0.8, 0.0, 0.0, 0.0, 0.8, 1.0], dtype=np.float32))
    np.testing.assert_allclose(checked.action, [0.3, 0.4, 0.0, 0.0, 0.0, 0.4, 1.0], rtol=1e-6)
    assert checked.interventions == ("translation-limit", "rotation-limit")
    small = np.array([0.3, 0.2, 0.0, 0.1, 0.0, 0.0, -1.0], dtype=np.float32)
    unchanged = guard.check(small)
    np.testing.assert_array_equal(unchanged.action, small)
    assert unchanged.interventions == ()
    assert guard.counts["translation-limit"] == guard.counts["rotation-limit"] == 1


def test_an_action_out_of_range_is_clamped_and_told() -> None:
    checked = SafetyGuard().check(np.array([2, -3, 0.5, 0, 0, 0, 0.2], dtype=np.float32))
    np.testing.assert_array_equal(checked.action, np.array([1, -1, 0.5, 0, 0, 0, 1], dtype=np.float32))
    assert checked.interventions == ("clamped",)
    assert SafetyGuard().check(np.array([0.1] * 6 + [1.0])).interventions == (), "another dtype is no other action"


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_not_finite_is_zero_motion_with_the_gripper_as_it_was(poison: float) -> None:
    guard = SafetyGuard()
    guard.see(_seen(_state(gripper=-1.0)))
    checked = guard.check(np.array([0.1, poison, 0, 0, 0, 0, 1]))
    np.testing.assert_array_equal(checked.action, [0, 0, 0, 0, 0, 0, -1])
    assert checked.interventions == ("not-finite",)
    guard.sent(np.array([0, 0, 0, 0, 0, 0, 1], dtype=np.float32))
    guard.see(_seen(_state(gripper=-1.0)))
    assert guard.hold()[6] == 1.0, "what was sent counts more than what was measured"
    guard.sent(np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32))
    guard.reset()
    assert guard.hold()[6] == -1.0, "a robot that does not tell may hold something"
    guard.see(_seen(_state(gripper=1.0)))
    assert guard.hold()[6] == 1.0


def test_not_finite_ends_the_run_after_zero_motion() -> None:
    robot = Robot(_state(gripper=-1.0))
    with raises(ContractError, "action", got="NaN or Inf"):
        ControlLoop(ClosedLoop(OneAction(*[np.nan] * 7)), robot).run("go", max_steps=3)
    np.testing.assert_array_equal(robot.actions, [[0, 0, 0, 0, 0, 0, -1]])
    assert robot.num_stops == 1


class Arm(Robot):
    """Follows its commands, or is blocked."""

    def __init__(self, *, is_blocked: bool = False) -> None:
        super().__init__(_state())
        self.is_blocked = is_blocked

    def apply(self, action: np.ndarray) -> None:
        super().apply(action)
        if not self.is_blocked:
            self.state = self.state + np.r_[0.02 * action[:3], np.zeros(12)]


def test_the_tool_stays_in_its_workspace() -> None:
    arm = Arm()
    loop = ControlLoop(ClosedLoop(OneAction(1, 0, -0.75, 0, 0, 0, 1)), arm, guard=SafetyGuard(SafetyLimits(workspace=BOX)))
    summary = loop.run("go", max_steps=12)
    np.testing.assert_allclose(arm.state[:3], [0.1, 0.0, 0.3], atol=1e-6)
    # x reaches its bound after 5 steps, z after 6 and two thirds.
    assert summary.interventions == {"workspace": 7}
    np.testing.assert_allclose(arm.actions[5], [0, 0, -0.75, 0, 0, 0, 1], atol=1e-5)


def test_the_target_of_a_blocked_arm_stays_inside_too() -> None:
    for adds_up, moved_steps in ((True, 5), (False, 12)):
        arm = Arm(is_blocked=True)
        guard = SafetyGuard(SafetyLimits(workspace=BOX, adds_up=adds_up))
        ControlLoop(ClosedLoop(OneAction(1, 0, 0, 0, 0, 0, 1)), arm, guard=guard).run("go", max_steps=12)
        assert sum(action[0] > 1e-4 for action in arm.actions) == moved_steps


def test_between_frames_the_pose_is_reckoned_from_what_was_sent() -> None:
    guard = SafetyGuard(SafetyLimits(workspace=BOX, adds_up=False))
    guard.see(_seen(_state(x=0.07)))
    for expected in (1.0, 0.5, 0.0):
        action = guard.check(np.array([1, 0, 0, 0, 0, 0, 1], dtype=np.float32)).action
        assert action[0] == pytest.approx(expected, abs=1e-5)
        guard.sent(action)


def test_an_arm_outside_its_workspace_may_come_back_at_its_own_pace() -> None:
    guard = SafetyGuard(SafetyLimits(workspace=BOX))
    guard.see(_seen(_state(x=0.15)))
    assert guard.check(np.array([1, 0, 0, 0, 0, 0, 1], dtype=np.float32)).action[0] == 0.0
    np.testing.assert_array_equal(guard.check(np.zeros(7)).action[:6], np.zeros(6))
    assert guard.check(np.array([-0.5, 0, 0, 0, 0, 0, 1], dtype=np.float32)).action[0] == -0.5


def test_a_workspace_needs_a_robot_that_tells_where_it_is() -> None:
    robot = Robot()
    loop = ControlLoop(ClosedLoop(CountingPolicy()), robot, guard=SafetyGuard(SafetyLimits(workspace=BOX)))
    with raises(ContractError, "workspace", got="an observation without state"):
        loop.run("go", max_steps=1)
    assert robot.actions == []


def test_limits_that_allow_nothing_are_refused() -> None:
    assert Workspace.parse("-0.1,-0.2,0.3, 0.1,0.2,0.5") == BOX
    with raises(ConfigError, "workspace", got="'1,2,3'", expected="six numbers in metres"):
        Workspace.parse("1,2,3")
    with raises(ConfigError, expected="three finite lower bounds, each below its upper bound"):
        Workspace.parse("0,0,0,1,0,1")
    with raises(ConfigError, "max_step_m", got="0.0", expected="a positive number"):
        SafetyLimits(max_step_m=0.0)


@pytest.mark.parametrize("pitch_rad", [-1.5, -0.5, 0.0, 0.7, 1.56])
def test_the_limit_in_radians_holds_for_the_true_angle_at_any_pitch(pitch_rad: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        state = _state()
        state[3:6] = rng.uniform(-3, 3), pitch_rad, rng.uniform(-3, 3)
        action = np.append(rng.uniform(-1, 1, 6), 1.0).astype(np.float32)
        for limit_rad in (0.004, 0.03):
            guard = SafetyGuard(SafetyLimits(max_step_rad=limit_rad))
            guard.see(_seen(state))
            safe = guard.check(action).action.astype(np.float64)
            angle_rad = np.linalg.norm(_turn(state[3:6], 0.05 * safe[3:6]))
            assert angle_rad <= limit_rad * (1 + 2e-6)
            if guard.counts["rotation-limit"]:
                assert angle_rad == pytest.approx(limit_rad, rel=0.01), "no slower than it has to be"
                np.testing.assert_allclose(np.cross(safe[3:6], action[3:6]), 0.0, atol=1e-6)
            unseen = SafetyGuard(SafetyLimits(max_step_rad=limit_rad)).check(action).action.astype(np.float64)
            assert np.linalg.norm(_turn(state[3:6], 0.05 * unseen[3:6])) <= limit_rad * (1 + 2e-6), "holds in any posture"


def _turn(euler_rad: np.ndarray, step_rad: np.ndarray) -> np.ndarray:
    return rotation_vector(euler_to_matrix(euler_rad + step_rad) @ euler_to_matrix(euler_rad).T)


def test_between_frames_the_orientation_is_where_the_steps_led() -> None:
    """Pitched up to 1.2 rad within one chunk, roll and yaw have come close to one axis."""
    guard = SafetyGuard(SafetyLimits(max_step_rad=0.04))
    guard.see(_seen(_state()))
    for _ in range(24):
        guard.sent(np.array([0, 0, 0, 0, 1, 0, 1], dtype=np.float32))
    safe = guard.check(np.array([0, 0, 0, 1, 0, -1, 1], dtype=np.float32)).action.astype(np.float64)
    assert np.linalg.norm(_turn(np.array([0, 1.2, 0]), 0.05 * safe[3:6])) == pytest.approx(0.04, rel=1e-3)
