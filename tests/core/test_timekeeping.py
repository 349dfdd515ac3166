import numpy as np
import pytest

from rfedge.config import preset
from rfedge.contract import policy_contract
from rfedge.recurrence import Arrays, acting_row, advance, initial_state

CONFIG = preset("tiny").model_copy(update={"window": 3})


def summing_head(inputs: Arrays) -> Arrays:
    """A head each of whose rows holds the sum of the features it has seen, and their number."""
    h, c = inputs["h"] + inputs["features"].sum(), inputs["c"] + 1
    rows = h.shape[1]
    pose = np.broadcast_to(h[0, :, :1, None], (rows, 1, 6))
    return {"pose": pose, "gripper": np.zeros((rows, 1), np.float32), "h_out": h, "c_out": c}


def run(time_keeping: str, num_steps: int) -> list[tuple[float, float]]:
    config = CONFIG.model_copy(update={"time_keeping": time_keeping})
    state = initial_state(config)
    seen = []
    for step in range(num_steps):
        feature = np.zeros((1, config.feature_size), np.float32)
        feature[0, 0] = 10.0**step
        pose, _, state = advance(config, summing_head, feature, state)
        seen.append((float(pose[0, 0]), float(state.c[0, acting_row(state), 0])))
    return seen


def test_carry_never_forgets() -> None:
    assert run("carry", 5) == [(1, 1), (11, 2), (111, 3), (1111, 4), (11111, 5)]


def test_window_carries_until_full_then_has_seen_the_last_features_alone() -> None:
    assert run("window", 8) == [(1, 1), (11, 2), (111, 3), (1110, 3), (11100, 3), (111000, 3), (1110000, 3), (11100000, 3)]


@pytest.mark.parametrize("time_keeping", ["carry", "window"])
def test_a_state_has_a_row_for_every_lstm(time_keeping: str) -> None:
    config = CONFIG.model_copy(update={"time_keeping": time_keeping})
    assert initial_state(config).h.shape[1] == config.lstm_rows == {"carry": 1, "window": 3}[time_keeping]
    head = policy_contract(config).head
    assert head.input("h").shape[1] == head.outputs[0].shape[0] == config.lstm_rows


def test_advance_does_not_change_its_arguments() -> None:
    state = initial_state(CONFIG)
    feature = np.ones((1, CONFIG.feature_size), np.float32)
    advance(CONFIG, summing_head, feature, state)
    assert state.num_steps == 0
    assert not state.h.any()
    assert state.history.shape == (0, CONFIG.feature_size), "only a GPT head reads features again"
