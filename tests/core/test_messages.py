import numpy as np
import pytest

from rfedge.errors import ContractError
from rfedge.messages import GRIPPER_IMAGE_SHAPE, STATIC_IMAGE_SHAPE, Observation, check_action
from tests.errors import raises


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
    ("field", "value", "got", "expected"),
    [
        ("images.static", np.zeros((100, 200, 3), np.uint8), "shape (100, 200, 3)", "shape (200, 200, 3)"),
        ("images.gripper", np.zeros(GRIPPER_IMAGE_SHAPE, np.float32), "dtype float32", "dtype uint8"),
        ("images.static", np.full(STATIC_IMAGE_SHAPE, np.nan), "NaN or Inf pixels", "uint8 pixels 0 to 255"),
        ("state", np.full(15, np.nan), "NaN or Inf", "finite values"),
        ("state", np.zeros(8), "shape (8,)", "shape (15,)"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_got_and_expected(
    field: str, value: np.ndarray, got: str, expected: str
) -> None:
    with raises(ContractError, f"observation.{field}", got=got, expected=expected):
        Observation.from_dict(frame(**{f"observation.{field}": value}))


def test_missing_cameras_are_named() -> None:
    with raises(ContractError, "observation", got="keys ['image']", expected="one of..."):
        Observation.from_dict({"image": 1})
    fields = frame()
    del fields["observation.images.gripper"]
    with raises(ContractError, expected="'observation.images.gripper' beside 'observation.images.static'"):
        Observation.from_dict(fields)


def test_check_action_accepts_the_limits_and_refuses_what_lies_beyond() -> None:
    good = np.array([[1.0, -1.0, 0.0, 0.5, -0.5, 0.0, -1.0], [0, 0, 0, 0, 0, 0, 1.0]])
    check_action(good)
    for value, got in [(1.01, "pose up to 1.010"), (np.nan, "NaN or Inf")]:
        bad = good.copy()
        bad[0, 0] = value
        with raises(ContractError, "action", got=got):
            check_action(bad)
    half_open = good.copy()
    half_open[0, 6] = 0.5
    with raises(ContractError, expected="-1 (close) or 1 (open)"):
        check_action(half_open)
    with raises(ContractError, expected="(k, 7)"):
        check_action(good[0])
