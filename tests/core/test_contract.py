import numpy as np
import pytest

from rfedge.config import preset, preset_names
from rfedge.contract import TensorSpec, policy_contract
from rfedge.errors import ContractError
from tests.errors import raises


@pytest.mark.parametrize("name", preset_names())
def test_samples_satisfy_their_own_contract(name: str) -> None:
    contract = policy_contract(preset(name))
    for graph in (contract.backbone, contract.head):
        arrays = graph.sample_inputs(np.random.default_rng(0), dynamic_size=3)
        for spec in graph.inputs:
            spec.check(arrays[spec.name])
    assert contract.backbone.outputs[0].shape[-1] == contract.head.input("features").shape[-1]


def test_samples_are_seeded() -> None:
    contract = policy_contract(preset("tiny")).backbone
    one, same, other = (contract.sample_inputs(np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(one["image_static"], same["image_static"])
    assert not np.array_equal(one["image_static"], other["image_static"])


@pytest.mark.parametrize(
    ("array", "got", "expected"),
    [
        (np.zeros((2, 4), np.float32), "shape (2, 4)", "shape (2, 3) (layer, hidden)"),
        (np.zeros((2, 3)), "dtype float64", "dtype float32"),
        (np.full((2, 3), np.inf, np.float32), "NaN or Inf", "finite values"),
    ],
)
def test_check_says_what_is_wrong(array: np.ndarray, got: str, expected: str) -> None:
    spec = TensorSpec(name="h", dtype="float32", shape=(2, 3), axes=("layer", "hidden"))
    with raises(ContractError, "tensor 'h'", got=got, expected=expected):
        spec.check(array)


def test_a_dynamic_axis_takes_any_size() -> None:
    spec = TensorSpec(name="features", dtype="float32", shape=(1, -1, 3), axes=("batch", "step", "width"))
    for steps in (1, 12):
        spec.check(np.zeros((1, steps, 3), np.float32))
