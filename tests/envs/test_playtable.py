"""Control, states, brakes, lights and determinism of the PlayTable."""

import subprocess
import sys

import numpy as np
import pytest

from rfedge.data.robot import LOWER_RAD, UPPER_RAD
from rfedge.data.scene import scenes
from rfedge.envs import Environment, make_environment
from rfedge.envs.interface import CONTROL_HZ
from rfedge.envs.playtable.layout import BASE_POSITION_M, DRAWER_MAX_M, LAYOUTS, SWITCH_MAX_M
from rfedge.envs.playtable.model import SUBSTEPS, build_mjcf
from rfedge.envs.playtable.robot import NEUTRAL_ROBOT_OBS

SCENE = np.array(
    [
        0.1,
        0.05,
        0.0,
        0.06,
        1.0,
        0.0,
        0.05,
        -0.12,
        0.46,
        0,
        0,
        1.57,
        0.18,
        -0.12,
        0.46,
        0,
        0,
        0,
        0.1,
        0.0924,
        0.461,
        0,
        0,
        1.57,
    ]
)


def still(gripper: float = 1.0) -> np.ndarray:
    return np.array([0, 0, 0, 0, 0, 0, gripper], dtype=np.float64)


def test_reset_without_arguments_gives_calvins_neutral_pose(physics: Environment) -> None:
    physics.restore()
    state = physics.robot_state()
    np.testing.assert_allclose(state[:3], [0.02587, -0.23131, 0.57128], atol=2e-5)
    np.testing.assert_allclose(state[3:6], [3.0905, -0.0291, 1.5001], atol=1e-4)
    assert state[6] == pytest.approx(0.08, abs=1e-4)
    assert state[14] == 1.0


@pytest.mark.parametrize("axis", range(6))
def test_response_to_one_full_step_is_calvins(physics: Environment, axis: int) -> None:
    physics.restore()
    start = physics.robot_state()[axis]
    covered = []
    for step in range(5):
        action = still()
        action[axis] = 1.0 if step == 0 else 0.0
        physics.advance(action)
        covered.append((physics.robot_state()[axis] - start) / (0.02 if axis < 3 else 0.05))
    # CALVIN's rotations start a little slower (0.43); the shape is the same.
    np.testing.assert_allclose(covered, [0.49, 0.76, 0.885, 0.94, 0.97], atol=0.05)


def test_full_speed_is_tracked(physics: Environment) -> None:
    physics.restore()
    start = physics.robot_state()[:3]
    action = still()
    action[0] = 1.0
    for _ in range(10):
        physics.advance(action)
    moved = physics.robot_state()[:3] - start
    assert moved[0] == pytest.approx(0.18, abs=0.012), "0.2 m commanded, about 0.02 m of lag"
    np.testing.assert_allclose(moved[1:], 0.0, atol=0.01)


def test_gripper_response(physics: Environment) -> None:
    physics.restore()
    widths = []
    for gripper in (-1, -1, -1, 1, 1, 1):
        physics.advance(still(gripper))
        widths.append(physics.robot_state()[6])
    np.testing.assert_allclose(widths, [0.034, 0.015, 0.006, 0.044, 0.068, 0.076], atol=0.01)


# Closed, the pressed fingers' joints add up to -0.012 m; open, to -0.013 m at one moment and 0.097 m at another.
@pytest.mark.parametrize("gripper", [-1.0, 1.0])
def test_the_width_stays_within_the_grippers_range_when_the_fingers_are_pressed_sideways(
    physics: Environment, gripper: float
) -> None:
    physics.restore()
    widths = []
    for step in range(60):
        action = still(gripper)
        action[2] = -1.0 if step < 10 else 0.0  # down between the blocks, then hard against the drawer's side
        action[0] = 1.0 if step >= 10 else 0.0
        physics.advance(action)
        widths.append(physics.robot_state()[6])
    for _ in range(20):
        physics.advance(still())
        widths.append(physics.robot_state()[6])
    assert min(widths) >= 0.0
    assert max(widths) <= 0.08
    ends = {0.0} if gripper < 0 else {0.0, 0.08}
    assert ends <= set(widths), "no longer pressed hard enough to leave the range"


@pytest.mark.parametrize("scene", ["A", "B", "C", "D"])
def test_restored_scenes_read_back(scene: str) -> None:
    with make_environment("playtable", scene=scene, render=False) as environment:
        environment.restore(NEUTRAL_ROBOT_OBS, SCENE)
        np.testing.assert_allclose(environment.scene_state(), SCENE, atol=2e-3)
        # Block poses follow the scene's own order of blocks.
        expected = {"A": "block_pink", "B": "block_red", "C": "block_blue", "D": "block_red"}[scene]
        assert environment.block_order[0] == expected
        np.testing.assert_allclose(environment.info().blocks[expected].position_m, SCENE[6:9], atol=2e-3)


def test_brakes_hold_doors_and_switch_and_blocks_rest(physics: Environment) -> None:
    physics.restore(NEUTRAL_ROBOT_OBS, SCENE)
    for _ in range(60):
        physics.advance(still())
    np.testing.assert_allclose(physics.scene_state(), SCENE, atol=2e-3)
    info = physics.info()
    assert info.blocks["block_red"].contacts == {("table", "base_link")}
    assert info.blocks["block_pink"].contacts == {("table", "plank_link")}
    assert info.robot_contacts == frozenset()
    assert np.abs(info.blocks["block_red"].linear_velocity_m_s).max() < 1e-3


def test_a_block_in_the_drawer_touches_the_drawer(physics: Environment) -> None:
    scene = SCENE.copy()
    scene[1] = 0.22
    scene[6:9] = 0.18, -0.28, 0.335
    physics.restore(NEUTRAL_ROBOT_OBS, scene)
    for _ in range(15):
        physics.advance(still())
    assert physics.info().blocks["block_red"].contacts == {("table", "drawer_link")}


def test_a_restored_pressed_button_springs_back_and_does_not_toggle(physics: Environment) -> None:
    scene = SCENE.copy()
    scene[2], scene[5] = 0.015, 1.0
    physics.restore(NEUTRAL_ROBOT_OBS, scene)
    for _ in range(20):
        physics.advance(still())
    assert physics.scene_state()[2] < 0.002
    assert physics.scene_state()[5] == 1.0


def test_random_blocks_do_not_overlap_and_differ_between_resets() -> None:
    with make_environment("playtable", seed=5, render=False) as environment:
        seen = []
        for _ in range(10):
            environment.restore()
            seen.append(environment.scene_state())
            for block in environment.info().blocks.values():
                assert {body for body, _ in block.contacts} == {"table"}
        assert len({state.tobytes() for state in seen}) == 10


TRAJECTORY = """
import hashlib, sys
import numpy as np
from rfedge.envs import make_environment

def run(environment):
    rng = np.random.default_rng(3)
    digest = hashlib.sha256()
    for _ in range(40):
        action = np.append(rng.uniform(-1, 1, 6), rng.choice([-1.0, 1.0]))
        action[2] = -0.6
        environment.advance(action)
        digest.update(environment.robot_state().tobytes() + environment.scene_state().tobytes())
    return digest.hexdigest()
"""


def test_the_same_seed_is_bit_identical_in_another_process_and_after_other_work() -> None:
    script = TRAJECTORY + "print(run(make_environment('playtable', seed=11, render=False)))"
    other = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.strip()
    names: dict[str, object] = {}
    exec(TRAJECTORY, names)  # the very text that the other process ran
    run = names["run"]
    with make_environment("playtable", seed=11, render=False) as environment:
        start = environment.robot_state(), environment.scene_state()
        assert run(environment) == other  # type: ignore[operator]
        environment.restore(*start)
        again = run(environment)  # type: ignore[operator]
        environment.restore(*start)
        assert run(environment) == again, "a restored state forgets its past"  # type: ignore[operator]


@pytest.mark.parametrize("scene", LAYOUTS)
def test_scene_xml_has_the_numbers_that_python_computes_with(scene: str) -> None:
    import mujoco

    layout = LAYOUTS[scene]
    model = mujoco.MjModel.from_xml_string(build_mjcf(layout))
    assert model.opt.timestep * SUBSTEPS * CONTROL_HZ == 1.0
    for link, most in (("drawer", DRAWER_MAX_M), ("slide", layout.slide_max_m), ("switch", SWITCH_MAX_M)):
        assert model.joint(f"base__{link}").range.tolist() == [0.0, most]
    ranges = np.array([model.joint(f"panda_joint{index}").range for index in range(1, 8)])
    np.testing.assert_array_equal(ranges, np.column_stack([LOWER_RAD, UPPER_RAD]))
    assert model.body("robot/panda_link0").pos.tolist() == list(BASE_POSITION_M)
    static, gripper, mount = model.camera("static"), model.camera("gripper"), model.body("robot/gripper_cam")
    np.testing.assert_array_equal(static.pos, scenes.STATIC_EYE_M)
    right, up, back = static.mat0.reshape(3, 3).T
    np.testing.assert_allclose([right, -up, -back], scenes.STATIC_AXES, atol=1e-15)
    assert (static.fovy, gripper.fovy) == (scenes.STATIC_FOV_DEG, scenes.GRIPPER_FOV_DEG)
    np.testing.assert_array_equal(mount.pos, scenes.MOUNT_POSITION_M)


def test_a_renderer_that_was_chosen_too_late_is_explained() -> None:
    code = (
        "import os; os.environ.pop('MUJOCO_GL', None); os.environ.pop('DISPLAY', None); import mujoco\n"
        "from rfedge.envs import make_environment\n"
        "make_environment('playtable')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "BackendUnavailableError: renderer: got" in result.stderr, result.stderr
    assert "MUJOCO_GL is the platform default" in result.stderr
    assert "only if it is set before the program first imports mujoco" in result.stderr
