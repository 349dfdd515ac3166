"""The cameras see CALVIN's landmarks at CALVIN's pixels."""

from typing import Any

import numpy as np
import pytest

from rfedge.data.scene.scenes import furniture_m
from rfedge.envs import Environment
from rfedge.envs.experts.furniture import button_top, drawer_handle, slide_handle, switch_tip
from rfedge.envs.playtable.layout import find_layout
from rfedge.envs.playtable.robot import NEUTRAL_ROBOT_OBS
from rfedge.envs.snapshots import sample_state
from rfedge.errors import BackendUnavailableError
from rfedge.robot.rotations import euler_to_matrix
from tests.errors import raises

# red in the cabinet on the left, blue and pink on the table's two spots, everything closed and off
EVALUATION_SCENE = np.zeros(24)
EVALUATION_SCENE[6:12] = -0.240851662, 0.0924044687, 0.460990009, 0, 0, 1.57
EVALUATION_SCENE[12:18] = 0.05, -0.12, 0.46, 0, 0, 1.57
EVALUATION_SCENE[18:24] = 0.23, -0.12, 0.46, 0, 0, 1.57


def project(environment: Any, camera: str, point_m: np.ndarray, size: int) -> np.ndarray:
    """Return pixel (u, v) of a world point by the pose and opening that MuJoCo has for the camera."""
    model, data = environment._model, environment._data
    index = model.camera(camera).id
    seen = data.cam_xmat[index].reshape(3, 3).T @ (point_m - data.cam_xpos[index])
    focal_px = 0.5 * size / np.tan(0.5 * np.radians(model.cam_fovy[index]))
    return np.array([0.5 * size + focal_px * seen[0] / -seen[2], 0.5 * size - focal_px * seen[1] / -seen[2]])


def landmarks(environment: Any) -> dict[str, tuple[np.ndarray, tuple[int, int]]]:
    model, data = environment._model, environment._data

    def centre(geom: str, *, up: float = 0.0) -> np.ndarray:
        """Return a geom's centre, moved `up` metres along its own z axis."""
        index = model.geom(geom).id
        return data.geom_xpos[index] + up * data.geom_xmat[index].reshape(3, 3)[:, 2]

    def top(geom: str) -> float:
        return float(model.geom(geom).size[2])

    blocks = environment.info().blocks
    return {
        "button": (centre("button_cap", up=float(model.geom("button_cap").size[1])), (56, 97)),
        "drawer handle": (centre("drawer_handle"), (114, 152)),
        "slide handle": (centre("slide_handle", up=top("slide_handle") - 0.012), (97, 55)),
        "switch": (centre("switch_lever", up=top("switch_lever")), (155, 67)),
        "bulb": (centre("lightbulb"), (159, 6)),
        "led": (centre("led"), (75, 12)),
        "cabinet left": (blocks["block_red"].position_m, (67, 63)),
        "first table spot": (blocks["block_blue"].position_m, (93, 104)),
        "second table spot": (blocks["block_pink"].position_m, (131, 105)),
        "tcp": (environment.robot_state()[:3], (57, 103)),
        "table corner": (np.array([0.44, -0.18, 0.44]), (172, 125)),
    }


def test_static_camera_sees_the_landmarks_where_calvin_does(playtable: Environment) -> None:
    playtable.restore(NEUTRAL_ROBOT_OBS, EVALUATION_SCENE)
    for name, (point_m, pixel) in landmarks(playtable).items():
        error_px = np.abs(project(playtable, "static", point_m, 200) - pixel).max()
        assert error_px <= 2.0, f"{name} is {error_px:.1f} px away"


def test_static_camera_intrinsics_and_view_matrix(playtable: Environment) -> None:
    model, data = playtable._model, playtable._data  # type: ignore[attr-defined]
    index = model.camera("static").id
    assert 100 / np.tan(np.radians(model.cam_fovy[index]) / 2) == pytest.approx(1143.005, abs=1e-3)
    rotation = data.cam_xmat[index].reshape(3, 3).T
    expected = [[0.723245, 0.514123, -0.46108], [-0.030261, 0.690611, 0.722594], [0.689929, -0.508659, 0.515038]]
    np.testing.assert_allclose(rotation, expected, atol=2e-6)
    np.testing.assert_allclose(-rotation @ data.cam_xpos[index], [0.215266, -0.263172, -4.399169], atol=2e-6)


def test_gripper_camera_hangs_behind_the_hand_and_looks_at_the_fingers(playtable: Environment) -> None:
    playtable.restore(NEUTRAL_ROBOT_OBS, EVALUATION_SCENE)
    model, data = playtable._model, playtable._data  # type: ignore[attr-defined]
    hand = data.body("robot/panda_hand")
    rotation = hand.xmat.reshape(3, 3)
    index = model.camera("gripper").id
    np.testing.assert_allclose(data.cam_xpos[index], hand.xpos + rotation @ [-0.1, 0, 0], atol=1e-9)
    mount = rotation @ euler_to_matrix(np.array([1.3, 0.0, -1.57]))
    axes = data.cam_xmat[index].reshape(3, 3)
    np.testing.assert_allclose(-axes[:, 2], mount[:, 1], atol=1e-9)
    np.testing.assert_allclose(axes[:, 1], -mount[:, 2], atol=1e-9)
    assert 42 / np.tan(np.radians(model.cam_fovy[index]) / 2) == pytest.approx(54.735, abs=1e-3)


def test_blocks_and_lights_have_their_colours_in_the_picture(playtable: Environment) -> None:
    scene = EVALUATION_SCENE.copy()
    dark = playtable.reset(NEUTRAL_ROBOT_OBS, scene).static.astype(int)
    scene[[3, 4, 5]] = 0.088, 1, 1
    lit = playtable.reset(NEUTRAL_ROBOT_OBS, scene).static.astype(int)

    def mean(image: np.ndarray, pixel: tuple[int, int]) -> np.ndarray:
        u, v = pixel
        return image[v - 1 : v + 2, u - 1 : u + 2].mean(axis=(0, 1))

    red, blue, pink = (mean(dark, pixel) for pixel in ((67, 63), (93, 104), (131, 105)))
    assert red[0] > 2 * max(red[1], red[2])
    assert blue[2] > 2 * max(blue[0], blue[1])
    assert min(pink[0], pink[2]) > 2 * pink[1]
    bulb_off, bulb_on = mean(dark, (159, 6)), mean(lit, (159, 6))
    assert bulb_off[2] > 100 > 60 > bulb_on[2]
    led_off, led_on = mean(dark, (75, 12)), mean(lit, (75, 12))
    assert led_off[0] > 100 > 60 > led_on[0]
    assert led_on[1] > 100


def test_observations_keep_the_contract_and_rendering_repeats(playtable: Environment) -> None:
    first = playtable.reset(NEUTRAL_ROBOT_OBS, EVALUATION_SCENE)
    first.check()
    assert playtable.renderer in {"egl", "osmesa", "glfw"}
    second = playtable.observe()
    np.testing.assert_array_equal(first.static, second.static)
    np.testing.assert_array_equal(first.gripper, second.gripper)
    third = playtable.step(np.array([1, 0, 0, 0, 0, 0, -1.0]))
    assert (third.static != first.static).any()
    assert (third.gripper != first.gripper).any()


def test_a_renderer_that_cannot_start_says_what_to_install(playtable: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    import mujoco

    from rfedge.envs.playtable.simulator import Cameras

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no EGL device")

    monkeypatch.setattr(mujoco, "GLContext", refuse)
    with raises(BackendUnavailableError, remedy="...apt-get install libegl1 libgl1-mesa-dri..."):
        Cameras(playtable._model)  # type: ignore[attr-defined]


@pytest.mark.parametrize("scene", ["A", "B", "C", "D"])
def test_furniture_is_where_the_experts_reach_for_it(scene: str) -> None:
    layout, rng = find_layout(scene), np.random.default_rng(0)
    states = np.stack([sample_state(layout, rng)[1] for _ in range(20)])
    reached = [
        [finder(layout)(state).position_m for finder in (slide_handle, drawer_handle, switch_tip, button_top)]
        for state in states
    ]
    np.testing.assert_allclose(furniture_m(scene, states), reached, atol=1e-9)
