"""One geometry wherever a picture is brought to size: the same post is in the same column in data and on the robot."""

import numpy as np
import pytest

from rfedge.data.conversion.records import fit_image as fit_recorded_image
from rfedge.errors import ConfigError
from rfedge.robot.camera import RESIZES, Resize, check_resize, fit_image, resize_window
from rfedge.runtimes.adapters.conversion import fit_camera
from tests.errors import raises

SHAPE = (200, 200, 3)


def post(height: int, width: int) -> np.ndarray:
    """A picture with a white post at a quarter of its width."""
    scene = np.zeros((height, width, 3), np.uint8)
    scene[:, width // 4 - 4 : width // 4 + 4] = 255
    return scene


def column(image: np.ndarray) -> float:
    row = image[100, :, 0].astype(float)
    return float((row * np.arange(200.0)).sum() / row.sum())


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((480, 640), "crop", 32.8),
        ((480, 640), "stretch", 49.5),
        ((480, 640), "pad", 49.5),
        ((1080, 1920), "crop", 10.6),
        ((1080, 1920), "stretch", 49.5),
        ((1080, 1920), "pad", 49.5),
    ],
)
def test_a_post_is_where_the_geometry_says_in_data_and_on_the_robot(
    size: tuple[int, int], resize: Resize, expected: float
) -> None:
    scene = post(*size)
    recorded = fit_recorded_image("camera", scene, SHAPE, resize=resize, flip="none")
    assert column(recorded) == pytest.approx(expected, abs=0.1)
    shown = fit_camera("camera", scene, SHAPE, resize)
    assert np.abs(shown.astype(int) - recorded).max() <= 1, "the robot's filter is the converter's"


def test_what_is_not_said_is_alike_on_both_sides() -> None:
    from rfedge.config import preset
    from rfedge.data.conversion import ConversionOptions

    assert ConversionOptions().resize == preset("tiny").resize == "crop"
    assert column(fit_camera("camera", post(480, 640), SHAPE)) == pytest.approx(32.8, abs=0.1)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(480, 640), (640, 480), (84, 84), (200, 200), (33, 901)])
def test_every_size_becomes_the_policys(size: tuple[int, int], resize: Resize) -> None:
    image = np.full((*size, 3), 200, np.uint8)
    for shape in (SHAPE, (84, 84, 3)):
        fitted = fit_image(image, shape, resize)
        assert fitted.shape == shape
        assert fitted.max() == 200
        assert (fitted == 0).any() == (resize == "pad" and size[0] != size[1])
    square = fit_image(np.arange(100 * 100 * 3, dtype=np.uint8).reshape(100, 100, 3), SHAPE, resize)
    np.testing.assert_array_equal(square, fit_image(np.arange(30000, dtype=np.uint8).reshape(100, 100, 3), SHAPE, "crop"))


def test_windows_are_in_whole_pixels_and_in_the_middle() -> None:
    window = resize_window((481, 640), (200, 200), "crop")
    assert (window.top, window.left, window.height, window.width) == (0, 79, 481, 481)
    window = resize_window((480, 640), (200, 200), "pad")
    assert (window.out_top, window.out_left, window.out_height, window.out_width) == (25, 0, 150, 200)
    with raises(ConfigError, "resize", got="'crap'", expected="one of crop, stretch, pad (did you mean 'crop'?)"):
        check_resize("crap")
