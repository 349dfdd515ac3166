"""What `rfedge.envs.interface.Environment` promises, asked of every environment there is."""

from collections.abc import Iterator

import numpy as np
import pytest

from rfedge.envs import BlockState, Environment, make_environment
from rfedge.envs.interface import BLOCKS, CAMERAS
from rfedge.errors import ConfigError, ContractError
from tests.envs.calvin_install import calvin_python
from tests.errors import raises

# CALVIN's evaluation starts here: tcp, euler angles, width, joints, last gripper action
NEUTRAL = np.concatenate(
    [
        [0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963],
        [-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0],
    ]
)
SCENE = np.concatenate(
    [
        [0.1, 0.05, 0.0, 0.06, 1.0, 0.0],  # slide, drawer, button, switch, bulb, LED
        [0.05, -0.12, 0.46, 0.0, 0.0, 1.57],  # red, on the table
        [0.23, -0.12, 0.46, 0.0, 0.0, 0.0],  # blue, on the table
        [0.1, 0.0924, 0.461, 0.0, 0.0, 1.57],  # pink, in the cabinet
    ]
)
SLIDE, DRAWER, BUTTON, SWITCH, BULB, LED = range(6)
SETTLED = 5e-3  # metres and radians by which a restored block may settle within a step


@pytest.fixture(scope="module", params=["playtable", pytest.param("calvin", marks=pytest.mark.calvin)])
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "calvin":
        calvin_python()
    return str(request.param)


@pytest.fixture(scope="module")
def environment(name: str) -> Iterator[Environment]:
    with make_environment(name, scene="D", seed=4, task="open the drawer") as environment:
        yield environment


def action(*pose: float, gripper: float = 1.0) -> np.ndarray:
    return np.array([*pose, *[0.0] * (6 - len(pose)), gripper])


def wait(environment: Environment, steps: int, gripper: float = 1.0) -> None:
    for _ in range(steps):
        environment.advance(action(gripper=gripper))


def move(environment: Environment, offset_m: tuple[float, float, float], gripper: float = -1.0) -> None:
    """Move the target by `offset_m` along a straight line and let the arm follow."""
    units = np.array(offset_m) / 0.02
    steps = int(np.ceil(np.abs(units).max()))
    for _ in range(steps):
        environment.advance(action(*(units / steps), gripper=gripper))
    wait(environment, 5, gripper)


def test_it_is_an_environment_and_describes_itself(environment: Environment) -> None:
    assert isinstance(environment, Environment)
    assert environment.control_hz == 30
    assert environment.scene == "D"
    assert environment.block_order == ("block_red", "block_blue", "block_pink")
    assert environment.renderer.split(" ")[0] in ("egl", "osmesa", "glfw", "tiny")


def test_an_observation_has_two_pictures_a_state_and_the_task(environment: Environment) -> None:
    observation = environment.reset(NEUTRAL, SCENE)
    observation.check()
    for image in (observation.static, observation.gripper):
        assert image.std() > 10.0, "a picture of one colour shows nothing"
    np.testing.assert_array_equal(observation.state, environment.robot_state())
    assert observation.task == "open the drawer"
    assert environment.robot_state().dtype == np.float64
    assert environment.scene_state().dtype == np.float64


def test_a_camera_can_be_drawn_alone(environment: Environment) -> None:
    observation = environment.reset(NEUTRAL, SCENE)
    for camera in CAMERAS:
        np.testing.assert_array_equal(environment.draw_camera(camera), getattr(observation, camera))


def test_restored_states_read_back(environment: Environment) -> None:
    environment.reset(NEUTRAL, SCENE)
    np.testing.assert_allclose(environment.robot_state(), NEUTRAL, atol=2e-3)
    np.testing.assert_allclose(environment.scene_state(), SCENE, atol=SETTLED)
    closed = NEUTRAL.copy()
    closed[6], closed[14] = 0.02, -1.0
    environment.restore(closed, SCENE)
    np.testing.assert_allclose(environment.robot_state(), closed, atol=2e-3)
    info = environment.info()
    assert info.doors["base__slide"] == pytest.approx(SCENE[SLIDE], abs=2e-3)
    assert info.doors["base__drawer"] == pytest.approx(SCENE[DRAWER], abs=2e-3)
    assert info.buttons["base__button"] == pytest.approx(SCENE[BUTTON], abs=2e-3)
    assert info.switches["base__switch"] == pytest.approx(SCENE[SWITCH], abs=2e-3)
    assert info.lights == {"lightbulb": True, "led": False}
    for index, block in enumerate(environment.block_order):
        np.testing.assert_allclose(info.blocks[block].position_m, SCENE[6 + 6 * index : 9 + 6 * index], atol=2e-3)


def test_what_it_returns_is_the_callers(environment: Environment) -> None:
    robot_obs, scene_obs = NEUTRAL.copy(), SCENE.copy()
    environment.restore(robot_obs, scene_obs)
    np.testing.assert_array_equal(robot_obs, NEUTRAL, err_msg="what it is given as well")
    np.testing.assert_array_equal(scene_obs, SCENE)
    for read in (environment.robot_state, environment.scene_state):
        before = read()
        read()[:] = 0.0
        np.testing.assert_array_equal(read(), before)


@pytest.mark.parametrize("scene", ["A", "B", "C"])
def test_random_resets_differ_and_repeat_in_a_fresh_environment(name: str, scene: str) -> None:
    def first_scenes(seed: int) -> np.ndarray:
        with make_environment(name, scene=scene, seed=seed, render=False) as fresh:
            assert fresh.scene == scene
            assert sorted(fresh.block_order) == sorted(BLOCKS)
            seen = []
            for _ in range(4):
                fresh.restore()
                seen.append(fresh.scene_state())
                np.testing.assert_allclose(fresh.robot_state(), NEUTRAL, atol=2e-3)
        return np.stack(seen)

    scenes = first_scenes(7)
    assert len({row.tobytes() for row in scenes}) == 4
    np.testing.assert_array_equal(scenes, first_scenes(7))
    assert not np.array_equal(scenes, first_scenes(8))
    np.testing.assert_allclose(scenes[:, :6], 0.0, atol=SETTLED, err_msg="doors closed, lights off")
    blocks = scenes[:, 6:].reshape(4, 3, 6)
    np.testing.assert_allclose(blocks[:, :, 2], 0.46, atol=0.01)
    assert (np.abs(blocks[:, :, 0]) < 0.36).all()
    assert (np.abs(blocks[:, :, 1]) < 0.16).all()


@pytest.mark.parametrize("axis", range(6))
def test_the_arm_follows_a_target_with_calvins_lag(environment: Environment, axis: int) -> None:
    environment.restore(NEUTRAL, SCENE)
    start = environment.robot_state()[axis]
    full_step = 0.02 if axis < 3 else 0.05
    covered = []
    for step in range(5):
        environment.advance(np.eye(7)[axis] + action() if step == 0 else action())
        covered.append((environment.robot_state()[axis] - start) / full_step)
    # Rotations start a little slower in CALVIN itself (0.43).
    tolerance = 0.05 if axis < 3 else 0.09
    np.testing.assert_allclose(covered, [0.49, 0.76, 0.885, 0.94, 0.97], atol=tolerance)


def test_increments_add_up_on_the_target(environment: Environment) -> None:
    environment.restore(NEUTRAL, SCENE)
    start = environment.robot_state()[:3]
    for _ in range(8):
        environment.advance(action(0.0, 0.0, 0.5))
    wait(environment, 15)
    np.testing.assert_allclose(environment.robot_state()[:3] - start, [0.0, 0.0, 0.08], atol=2e-3)


def test_the_gripper_closes_and_opens(environment: Environment) -> None:
    environment.restore(NEUTRAL, SCENE)
    widths = []
    for gripper in (-1.0, -1.0, -1.0):
        environment.advance(action(gripper=gripper))
        widths.append(environment.robot_state()[6])
        assert environment.robot_state()[14] == gripper
    np.testing.assert_allclose(widths, [0.034, 0.015, 0.006], atol=0.01)
    wait(environment, 3)
    assert environment.robot_state()[6] > 0.06
    wait(environment, 6)
    assert environment.robot_state()[6] == pytest.approx(0.08, abs=3e-3)
    assert environment.robot_state()[14] == 1.0


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (np.zeros(6), "shape (6,)"),
        (np.zeros((1, 7)), "shape (1, 7)"),
        (action(gripper=0.3), "gripper [0.3]"),
        (action(1.01), "pose up to 1.010"),
        (action(np.nan), "NaN or Inf"),
        (action(0.0, np.inf), "NaN or Inf"),
    ],
)
def test_wrong_actions_are_refused_and_change_nothing(environment: Environment, wrong: np.ndarray, got: str) -> None:
    environment.restore(NEUTRAL, SCENE)
    before = environment.robot_state()
    for method in (environment.advance, environment.step):
        with raises(ContractError, "action", got=got):
            method(wrong)
    np.testing.assert_array_equal(environment.robot_state(), before)
    environment.advance(action())


def test_wrong_states_are_refused(environment: Environment) -> None:
    with raises(ContractError, "robot_obs"):
        environment.restore(np.zeros(14))
    with raises(ContractError, "scene_obs"):
        environment.restore(None, np.full(24, np.nan))


def test_a_button_press_toggles_the_led_once(environment: Environment) -> None:
    scene = SCENE.copy()
    scene[BULB], scene[SWITCH] = 0.0, 0.0
    environment.restore(NEUTRAL, scene)
    wait(environment, 3, gripper=-1.0)
    move(environment, (-0.146, 0.111, 0.0))  # from the neutral tcp to above the button of scene D
    for led in (1.0, 0.0):
        move(environment, (0.0, 0.0, -0.095))
        assert environment.scene_state()[LED] == led
        wait(environment, 5, gripper=-1.0)
        assert environment.scene_state()[LED] == led, "holding it down is one press"
        move(environment, (0.0, 0.0, 0.095))
        assert environment.scene_state()[LED] == led, "letting go is none"
        assert environment.info().lights == {"lightbulb": False, "led": bool(led)}
        assert environment.scene_state()[BUTTON] == pytest.approx(0.0, abs=2e-3), "it springs back"


@pytest.mark.parametrize("is_on", [True, False])
def test_the_bulb_stays_as_its_switch_has_it(environment: Environment, is_on: bool) -> None:
    scene = SCENE.copy()
    scene[SWITCH], scene[BULB] = (0.088, 1.0) if is_on else (0.0, 0.0)
    environment.restore(NEUTRAL, scene)
    wait(environment, 10)
    assert environment.scene_state()[BULB] == float(is_on)
    assert environment.info().lights["lightbulb"] is is_on
    assert environment.scene_state()[SWITCH] == pytest.approx(scene[SWITCH], abs=2e-3)


@pytest.mark.parametrize(("light", "pixel"), [(LED, (75, 12)), (BULB, (159, 6))])
def test_a_light_that_is_on_is_seen(environment: Environment, light: int, pixel: tuple[int, int]) -> None:
    column, row = pixel
    seen = []
    for is_on in (0.0, 1.0):
        scene = SCENE.copy()
        scene[SWITCH] = 0.06 * is_on if light == BULB else 0.0
        scene[[BULB, LED]] = 0.0
        scene[light] = is_on
        static = environment.reset(NEUTRAL, scene).static.astype(float)
        _, green, blue = static[row - 1 : row + 2, column - 1 : column + 2].mean(axis=(0, 1))
        seen.append(green - blue)  # white has none of it; green and yellow have much
    assert seen[1] - seen[0] > 60.0


def test_doors_stay_where_they_are_left_and_blocks_rest(environment: Environment) -> None:
    environment.restore(NEUTRAL, SCENE)
    wait(environment, 60)
    np.testing.assert_allclose(environment.scene_state(), SCENE, atol=SETTLED)
    for block in environment.info().blocks.values():
        assert isinstance(block, BlockState)
        assert np.abs(block.linear_velocity_m_s).max() < 0.05
        assert np.linalg.norm(block.orientation_xyzw) == pytest.approx(1.0)


def test_contacts_name_what_a_resting_block_touches(environment: Environment) -> None:
    scene = SCENE.copy()
    scene[DRAWER] = 0.22
    scene[6:9] = 0.18, -0.28, 0.37
    environment.restore(NEUTRAL, scene)
    wait(environment, 15)
    info = environment.info()
    assert info.blocks["block_red"].contacts == {("table", "drawer_link")}
    assert info.blocks["block_blue"].contacts == {("table", "base_link")}
    assert info.blocks["block_pink"].contacts == {("table", "plank_link")}
    assert info.robot_contacts == frozenset()


def test_a_block_upon_a_block_touches_only_that(environment: Environment) -> None:
    scene = SCENE.copy()
    scene[12:18] = scene[6:12]
    scene[14] += 0.04
    environment.restore(NEUTRAL, scene)
    wait(environment, 15)
    info = environment.info()
    assert info.blocks["block_blue"].contacts == {("block_red", "base_link")}
    assert info.blocks["block_red"].contacts == {("block_blue", "base_link"), ("table", "base_link")}


def test_a_gripped_block_touches_the_robot_alone(environment: Environment) -> None:
    scene = SCENE.copy()
    scene[6:12] = [*NEUTRAL[:3], 0.0, 0.0, NEUTRAL[5]]
    robot = NEUTRAL.copy()
    robot[6] = 0.056  # the red block of scene D is gripped along its length
    environment.restore(robot, scene)
    wait(environment, 5, gripper=-1.0)
    info = environment.info()
    assert {body for body, _ in info.blocks["block_red"].contacts} == {"robot"}
    assert info.robot_contacts == {("block_red", "base_link")}
    assert info.blocks["block_red"].position_m[2] == pytest.approx(NEUTRAL[2], abs=0.01)


def test_a_step_returns_what_can_then_be_observed(environment: Environment) -> None:
    environment.reset(NEUTRAL, SCENE)
    before = environment.observe()
    after = environment.step(action(0.5, 0.5, -1.0, gripper=-1.0))
    again = environment.observe()
    np.testing.assert_array_equal(after.static, again.static)
    np.testing.assert_array_equal(after.gripper, again.gripper)
    np.testing.assert_array_equal(after.state, again.state)
    assert not np.array_equal(before.static, after.static)
    assert not np.array_equal(before.gripper, after.gripper)
    assert not np.array_equal(before.state, after.state)


def test_physics_alone_has_no_pictures_and_closing_twice_is_closing_once(name: str) -> None:
    with make_environment(name, scene="D", seed=4, render=False) as physics:
        assert physics.renderer == "none"
        physics.advance(action())
        for method in (physics.observe, physics.reset, lambda: physics.step(action())):
            with raises(ConfigError, remedy="...render=True..."):
                method()
        physics.close()
    physics.close()


@pytest.mark.parametrize("option", [{"scene": "E"}, {"scene": "calvin_scene_D"}])
def test_unknown_scenes_are_refused(name: str, option: dict[str, str]) -> None:
    with raises(ConfigError, expected="one of A, B, C, D"):
        make_environment(name, **option)
