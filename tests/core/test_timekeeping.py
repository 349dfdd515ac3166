import numpy as np

from rfedge.config import preset
from rfedge.timekeeping import Arrays, advance, initial_state

CONFIG = preset("tiny").model_copy(update={"window": 3})


def summing_head(inputs: Arrays) -> Arrays:
    """A head whose state is the sum of the features it has seen, so that a replay can be told from a carry."""
    features, h = inputs["features"], inputs["h"] + inputs["features"].sum()
    pose = np.full((1, 1, 6), h.flat[0], np.float32)
    return {"pose": pose, "gripper": np.zeros((1, 1), np.float32), "h_out": h, "c_out": inputs["c"] + features.shape[1]}


def run(time_keeping: str, num_steps: int) -> list[tuple[float, float]]:
    config = CONFIG.model_copy(update={"time_keeping": time_keeping})
    state = initial_state(config)
    seen = []
    for step in range(num_steps):
        feature = np.zeros((1, config.feature_size), np.float32)
        feature[0, 0] = 10.0**step
        pose, _, state = advance(config, summing_head, feature, state)
        seen.append((float(pose[0, 0]), float(state.c.flat[0])))
    return seen


def test_carry_never_forgets() -> None:
    assert run("carry", 5) == [(1, 1), (11, 2), (111, 3), (1111, 4), (11111, 5)]


def test_window_carries_until_full_then_replays_the_last_features_from_zero() -> None:
    assert run("window", 5) == [(1, 1), (11, 2), (111, 3), (1110, 3), (11100, 3)]


def test_advance_does_not_change_its_arguments() -> None:
    state = initial_state(CONFIG)
    feature = np.ones((1, CONFIG.feature_size), np.float32)
    advance(CONFIG, summing_head, feature, state)
    assert state.num_steps == 0
    assert not state.h.any()
    assert state.history.shape == (0, CONFIG.feature_size)
