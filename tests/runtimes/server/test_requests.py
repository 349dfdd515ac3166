"""What a decoded message must hold, field by field, and how images of other sizes are brought to the policy's."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from rfedge.errors import ContractError
from rfedge.robot.camera import Resize, fit_image
from rfedge.runtimes.server.requests import RequestRules, parse_request
from tests.errors import raises
from tests.runtimes.server.running_server import frame, request

RULES = RequestRules(max_instruction_characters=40, resize=None, uses_state=False)
RESIZING = RequestRules(max_instruction_characters=40, resize="crop", uses_state=False)
STATEFUL = RequestRules(max_instruction_characters=40, resize=None, uses_state=True)


def image(*shape: int, dtype: str = "uint8") -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize("convention", ["openpi", "lerobot", "calvin"])
def test_the_three_conventions_are_the_same_frame(convention: str) -> None:
    parsed = parse_request(request(frame(1), "push the button", convention), RULES)
    observation = parsed.observation()
    np.testing.assert_array_equal(observation.static, frame(1).static)
    np.testing.assert_array_equal(observation.gripper, frame(1).gripper)
    assert parsed.instruction == "push the button"
    assert not parsed.resets


def test_a_state_is_kept_for_a_policy_that_reads_it_and_dropped_for_others() -> None:
    fields = request(frame(), "go")
    assert parse_request(fields | {"observation/state": np.zeros(8)}, RULES).observation().state is None
    assert parse_request(fields | {"observation/state": np.ones(15)}, STATEFUL).observation().state is not None
    with raises(ContractError, "observation/state", got="shape (8,)", expected="shape (15,)"):
        parse_request(fields | {"observation/state": np.zeros(8)}, STATEFUL)
    for number in ([0.5] * 15, np.full(15, 0.5, np.float16), np.full(15, 2), np.full(15, 2, np.uint8)):
        state = parse_request(fields | {"observation/state": number}, STATEFUL).observation().state
        np.testing.assert_array_equal(state, np.full(15, number[0], np.float64))
    for bad in (np.full(15, np.nan), np.zeros((15, 1)), np.zeros(15, bool), np.zeros(65), [0.0] * 14 + ["a"], [True] * 15):
        with raises(ContractError, "observation/state"):
            parse_request(fields | {"observation/state": bad}, RULES)


@pytest.mark.parametrize(
    ("key", "value", "subject", "got"),
    [
        ("observation/image", image(224, 224, 3), "observation/image", "shape (224, 224, 3)"),
        ("observation/image", image(200, 200, 3, dtype="float32"), "observation/image", "dtype float32"),
        ("observation/image", image(3, 200, 200), "observation/image", "shape (3, 200, 200)"),
        ("observation/image", "pixels", "observation/image", "a str"),
        ("observation/wrist_image", None, "observation/wrist_image", "a NoneType"),
        ("prmpt", "go", None, "key 'prmpt'"),
        ("rgb_gripper", image(84, 84, 3), None, "key 'rgb_gripper'"),
        ("__class__", "os.system", None, "key '__class__'"),
        ("prompt", "x" * 41, "instruction", "41 characters"),
        ("prompt", ["go"], "instruction", "a list"),
        ("prompt", "  ", "instruction", "no words"),
        ("task", "go", "instruction", "both prompt and task"),
        ("deadline_ms", -1, "deadline_ms", -1),
        ("deadline_ms", float("nan"), "deadline_ms", "nan"),
        ("deadline_ms", True, "deadline_ms", True),
        ("reset", 1, "reset", "a int"),
    ],
)
def test_one_wrong_field_is_named(key: str, value: Any, subject: str | None, got: Any) -> None:
    with raises(ContractError, subject, got=got):
        parse_request(request(frame(), "go") | {key: value}, RULES)


def test_sensors_that_the_policy_does_not_read_are_left_out() -> None:
    further = {"observation/image_2": image(200, 200, 3), "observation/joint_position": np.zeros(7), "depth_static": None}
    np.testing.assert_array_equal(
        parse_request(request(frame(), "go") | further, RULES).observation().static, frame().static
    )


def test_missing_cameras_are_named() -> None:
    with raises(ContractError, "observation", got="keys ['prompt']", expected="one of observation.images.static..."):
        parse_request({"prompt": "go"}, RULES)
    with raises(ContractError, expected="observation/wrist_image beside observation/image"):
        parse_request({"observation/image": image(200, 200, 3), "prompt": "go"}, RULES)


def test_pictures_of_other_sizes_are_brought_to_the_policys_when_asked() -> None:
    fields = request(frame(), "go") | {
        "observation/image": image(224, 224, 3),
        "observation/wrist_image": image(224, 224, 3),
    }
    observation = parse_request(fields, RESIZING).observation()
    assert observation.static.shape == (200, 200, 3)
    assert observation.gripper.shape == (84, 84, 3)
    for bad in (image(240, 320, 4), image(8, 240, 3), image(240, 4096, 3), image(224, 224)):
        with raises(ContractError, expected="(height, width, 3) with both from 32 to 2048"):
            parse_request(fields | {"observation/image": bad}, RESIZING)


@pytest.mark.parametrize(("resize", "column"), [("crop", 33.3), ("stretch", 50.0), ("pad", 50.0)])
def test_an_oblong_picture_is_cut_as_the_policys_demonstrations_were(resize: Resize, column: float) -> None:
    scene = image(480, 640, 3) * 0
    scene[:, 156:164] = 255  # a post at a quarter of the width
    rules = RequestRules(max_instruction_characters=40, resize=resize, uses_state=False)
    fields = request(frame(), "go") | {"observation/image": scene, "observation/wrist_image": image(84, 84, 3)}
    seen = parse_request(fields, rules).observation().static[100, :, 0].astype(float)
    assert (seen * np.arange(200)).sum() / seen.sum() == pytest.approx(column, abs=1.0)


@pytest.mark.parametrize(("source", "target"), [(224, 200), (224, 84), (640, 200), (64, 84)])
def test_resizing_equals_the_filter_of_the_converter(source: int, target: int) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((source, source))) // 2 + rng.integers(
        0, 128, (source, source, 3), dtype=np.uint8
    )
    expected = np.asarray(Image.fromarray(pixels).resize((target, target), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(fit_image(pixels, (target, target, 3), "crop").astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.02
    assert fit_image(pixels, pixels.shape, "crop") is pixels


def test_a_reset_may_come_with_its_first_frame() -> None:
    parsed = parse_request(request(frame(1), "go") | {"reset": True}, RULES)
    assert parsed.resets
    np.testing.assert_array_equal(parsed.observation().static, frame(1).static)
    assert parse_request({"reset": True, "prompt": "go"}, RULES).frame is None
    with raises(ContractError, expected="observation/wrist_image beside observation/image"):
        parse_request({"reset": True, "observation/image": image(200, 200, 3)}, RULES)
