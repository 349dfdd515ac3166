import re

import numpy as np
import pytest

from rfedge.errors import ContractError
from rfedge.messages import GRIPPER_IMAGE_SHAPE, STATIC_IMAGE_SHAPE, Observation, check_action


def frame(**changes: object) -> dict[str, object]:
    fields: dict[str, object] = {
        "observation.images.static": np.zeros(STATIC_IMAGE_SHAPE, np.uint8),
        "observation.images.gripper": np.zeros(GRIPPER_IMAGE_SHAPE, np.uint8),
        "observation.state": np.zeros(15),
        "task": "open the drawer",
    }
    return fields | changes


@pytest.mark.parametrize("convention", ["lerobot", "calvin", "openpi"])
def test_every_key_convention_is_read_back(convention: str) -> None:
    original = Observation.from_dict(frame())
    again = Observation.from_dict(original.to_dict(convention))
    assert np.array_equal(again.static, original.static)
    assert np.array_equal(again.gripper, original.gripper)
    assert again.task == original.task
    assert again.state is not None


def test_from_dict_leaves_the_callers_mapping_alone() -> None:
    fields = frame()
    before = dict(fields)
    Observation.from_dict(fields)
    assert fields.keys() == before.keys()
    assert all(fields[key] is before[key] for key in before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"observation.images.static": np.zeros((100, 200, 3), np.uint8)},
            (
                "observation.images.static: got shape (100, 200, 3), expected shape (200, 200, 3). "
                "Resize or crop the camera image."
            ),
        ),
        (
            {"observation.images.gripper": np.zeros(GRIPPER_IMAGE_SHAPE, np.float32)},
            "observation.images.gripper: got dtype float32, expected dtype uint8. Send raw RGB bytes, not normalised ones.",
        ),
        (
            {"observation.images.static": np.full(STATIC_IMAGE_SHAPE, np.nan)},
            (
                "observation.images.static: got NaN or Inf pixels, expected uint8 pixels 0 to 255. "
                "Drop this frame; check the camera."
            ),
        ),
        (
            {"observation.state": np.full(15, np.nan)},
            "observation.state: got NaN or Inf, expected finite values. Check the sensor that fills it.",
        ),
        (
            {"observation.state": np.zeros(8)},
            "observation.state: got shape (8,), expected shape (15,). See rfedge.messages for the axes.",
        ),
    ],
)
def test_a_wrong_field_is_named_with_what_was_got_and_expected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ContractError) as error:
        Observation.from_dict(frame(**changes))
    assert str(error.value) == message


def test_missing_cameras_are_named() -> None:
    with pytest.raises(ContractError, match=re.escape("observation: got keys ['image'], expected one of")):
        Observation.from_dict({"image": 1})
    fields = frame()
    del fields["observation.images.gripper"]
    with pytest.raises(
        ContractError, match=re.escape("expected 'observation.images.gripper' beside 'observation.images.static'")
    ):
        Observation.from_dict(fields)


def test_check_action_accepts_the_limits_and_refuses_what_lies_beyond() -> None:
    good = np.array([[1.0, -1.0, 0.0, 0.5, -0.5, 0.0, -1.0], [0, 0, 0, 0, 0, 0, 1.0]])
    check_action(good)
    for value, message in [(1.01, "expected [-1, 1]"), (np.nan, "got NaN or Inf")]:
        bad = good.copy()
        bad[0, 0] = value
        with pytest.raises(ContractError, match=re.escape(message)):
            check_action(bad)
    half_open = good.copy()
    half_open[0, 6] = 0.5
    with pytest.raises(ContractError, match="expected -1 \\(close\\) or 1 \\(open\\)"):
        check_action(half_open)
    with pytest.raises(ContractError, match="expected \\(k, 7\\)"):
        check_action(good[0])
