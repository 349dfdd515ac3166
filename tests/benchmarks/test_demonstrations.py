"""Recorded episodes keep the frame contract and depend on task, scene and seed alone."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from rfedge.benchmarks.success.demonstrations import MAX_FRAMES, RecordingOptions, record_episode
from rfedge.envs import INSTRUCTIONS, Environment, make_environment
from rfedge.envs.action_noise import BURST_STEPS, ActionNoise, NoiseBursts
from rfedge.envs.experts import make_expert
from rfedge.envs.language import PARAPHRASES
from rfedge.errors import ConfigError
from rfedge.messages import Observation, check_action
from rfedge.runtimes.control.modes import ControlStep
from tests.errors import raises


def test_frames_have_the_contracted_shapes_and_meaning(playtable: Environment) -> None:
    episode = record_episode("open_drawer", seed=2, environment=playtable)
    frames = episode.frames
    count = len(frames["actions"])
    assert episode.success
    assert episode.instruction in PARAPHRASES["open_drawer"]
    assert episode.instruction != INSTRUCTIONS["open_drawer"]
    assert 16 <= count <= MAX_FRAMES
    shapes = {"rgb_static": (200, 200, 3), "rgb_gripper": (84, 84, 3), "robot_obs": (15,), "scene_obs": (24,)}
    shapes |= {"actions": (7,), "rel_actions": (7,)}
    assert {name: array.shape[1:] for name, array in frames.items()} == shapes
    assert all(len(array) == count for array in frames.values())
    assert frames["rgb_static"].dtype == frames["rgb_gripper"].dtype == np.uint8
    assert all(frames[name].dtype == np.float64 for name in ("robot_obs", "scene_obs", "actions", "rel_actions"))
    check_action(frames["rel_actions"])
    np.testing.assert_array_equal(frames["actions"][:-1, :6], frames["robot_obs"][1:, :6])
    np.testing.assert_array_equal(frames["actions"][:, 6], frames["rel_actions"][:, 6])


def test_replaying_the_recorded_actions_gives_the_recorded_states(playtable: Environment) -> None:
    frames = record_episode("turn_on_led", seed=3, environment=playtable).frames
    twin = record_episode("turn_on_led", seed=3, environment=playtable).frames
    for name, array in frames.items():
        np.testing.assert_array_equal(array, twin[name])


def test_a_used_environment_gives_the_same_episode_as_a_fresh_one(playtable: Environment) -> None:
    record_episode("move_slider_left", seed=0, environment=playtable)
    used = record_episode("turn_on_led", seed=6, environment=playtable)
    fresh = record_episode("turn_on_led", seed=6)
    assert (used.instruction, used.success, used.seed) == (fresh.instruction, fresh.success, fresh.seed)
    for name, array in used.frames.items():
        np.testing.assert_array_equal(array, fresh.frames[name])


def test_another_scene_is_refused() -> None:
    with make_environment("playtable", scene="A", render=False) as environment, raises(ConfigError, got="scene A"):
        record_episode("turn_on_led", scene="D", seed=0, environment=environment)


# --- noise ------------------------------------------------------------------------------------------------------------
class NoisyTwin:
    """A world that notes what was sent to it."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.sent: list[np.ndarray] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._environment, name)

    def advance(self, action: np.ndarray) -> None:
        self.sent.append(action.copy())
        self._environment.advance(action)


def test_noise_is_sent_but_not_recorded_as_the_label(playtable: Environment) -> None:
    twin = NoisyTwin(playtable)
    options = RecordingOptions(noise=ActionNoise(0.6, share=0.4))
    episode = record_episode("open_drawer", seed=2, environment=twin, options=options)
    sent, labels = np.stack(twin.sent), episode.frames["rel_actions"]
    assert episode.success
    assert len(sent) == len(labels) <= MAX_FRAMES
    check_action(labels)
    check_action(sent)
    disturbed = (sent != labels).any(axis=1)
    assert 0.15 < disturbed.mean() < 0.7
    np.testing.assert_array_equal(sent[:, 6], labels[:, 6])
    # What happened is in `actions`, and replaying what was sent brings it about again.
    clean = record_episode("open_drawer", seed=2, environment=playtable)
    np.testing.assert_array_equal(episode.frames["robot_obs"][0], clean.frames["robot_obs"][0])
    assert episode.instruction == clean.instruction
    np.testing.assert_array_equal(episode.frames["actions"][:-1, :6], episode.frames["robot_obs"][1:, :6])
    np.testing.assert_array_equal(episode.frames["actions"][:, 6], sent[:, 6])
    first = int(disturbed.argmax())
    np.testing.assert_array_equal(labels[: first + 1], clean.frames["rel_actions"][: first + 1])
    assert np.abs(episode.frames["robot_obs"][first + 4, :3] - clean.frames["robot_obs"][first + 4, :3]).max() > 0.005


def test_noise_comes_in_bursts_of_one_direction_and_the_wanted_share() -> None:
    bursts = NoiseBursts(ActionNoise(0.5, share=0.3), np.random.default_rng(0))
    action = np.array([0.0] * 6 + [1.0])
    sent = np.stack([bursts.disturb(action) for _ in range(20_000)])
    pushed = (sent[:, :6] != 0).any(axis=1)
    assert pushed.mean() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_allclose(np.abs(sent[pushed, :6]).max(axis=1), 0.5)
    same = (sent[1:] == sent[:-1]).all(axis=1) & pushed[1:]
    starts = np.flatnonzero(pushed & ~np.concatenate([[False], same]))
    lengths = np.array([_run_length(same, int(start)) for start in starts])
    assert (lengths.min(), lengths.max()) == BURST_STEPS
    saturated = NoiseBursts(ActionNoise(1.0, share=0.9), np.random.default_rng(1))
    assert all(np.abs(saturated.disturb(np.ones(7))[:6]).max() <= 1.0 for _ in range(50))


def _run_length(same: np.ndarray, start: int) -> int:
    length = 1
    while start + length - 1 < len(same) and same[start + length - 1]:
        length += 1
    return length


@pytest.mark.parametrize("task", ["open_drawer", "lift_pink_block_table", "turn_off_lightbulb"])
def test_most_noisy_episodes_still_end_in_success(physics: Environment, task: str) -> None:
    options = RecordingOptions(noise=ActionNoise(0.5))
    blind = Blind(physics)
    done = [record_episode(task, seed=seed, environment=blind, options=options).success for seed in range(4)]
    assert sum(done) >= 3


# --- chains -----------------------------------------------------------------------------------------------------------
class Blind:
    """A world that shows grey images, for tests of what does not look at them."""

    _SEEN = Observation(static=np.full((200, 200, 3), 99, np.uint8), gripper=np.full((84, 84, 3), 99, np.uint8))

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def __getattr__(self, name: str) -> object:
        return getattr(self._environment, name)

    def observe(self) -> Observation:
        return self._SEEN


CHAIN_TASKS = ("open_drawer", "close_drawer", "turn_on_led", "lift_red_block_table", "place_in_drawer")


def test_a_chain_goes_on_where_the_last_task_ended(physics: Environment) -> None:
    options = RecordingOptions(chain_length=3, chain_tasks=CHAIN_TASKS)
    chain = record_episode("open_drawer", seed=4, environment=Blind(physics), options=options)
    alone = record_episode("open_drawer", seed=4, environment=Blind(physics))
    assert chain.success
    assert len(chain.segments) == 3
    assert chain.segments[0] == alone.segments[0]
    for name in ("robot_obs", "rel_actions", "actions"):
        np.testing.assert_array_equal(chain.frames[name][: len(alone.frames[name])], alone.frames[name])
    assert sum(segment.num_frames for segment in chain.segments) == len(chain.frames["actions"])
    for segment, following in itertools.pairwise(chain.segments):
        assert segment.task != following.task
    for segment in chain.segments:
        assert segment.solved
        assert segment.num_frames <= MAX_FRAMES
        assert segment.instruction in PARAPHRASES[segment.task]
    np.testing.assert_array_equal(chain.frames["actions"][:-1, :6], chain.frames["robot_obs"][1:, :6])


def test_what_follows_a_lift_begins_with_the_block_in_the_gripper(physics: Environment) -> None:
    options = RecordingOptions(chain_length=2, chain_tasks=("lift_red_block_table", "stack_block", "place_in_slider"))
    for seed in range(3):
        episode = record_episode("lift_red_block_table", seed=seed, environment=Blind(physics), options=options)
        assert all(segment.task in ("stack_block", "place_in_slider") for segment in episode.segments[1:])
        if len(episode.segments) > 1:
            return
    pytest.fail("no lift was followed by anything")


def test_a_failed_task_ends_the_chain_and_is_left_out(physics: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    class Idler:
        def act(self, robot_obs: np.ndarray, scene_obs: np.ndarray) -> np.ndarray:
            return np.array([0.0] * 6 + [1.0])

        def observe_executed(self, action: np.ndarray) -> None: ...

    experts = {"open_drawer": make_expert, "turn_on_led": lambda task, scene, rng: Idler()}
    monkeypatch.setattr(
        "rfedge.benchmarks.success.demonstrations.make_expert", lambda task, scene, rng: experts[task](task, scene, rng)
    )
    options = RecordingOptions(chain_length=3, chain_tasks=("open_drawer", "turn_on_led"))
    found = None
    for seed in range(8):  # a start with the LED off
        episode = record_episode("open_drawer", seed=seed, environment=Blind(physics), options=options)
        if episode.frames["scene_obs"][0, 5] == 0:
            found = episode
            break
    assert found.success
    assert [segment.task for segment in found.segments] == ["open_drawer"]
    assert len(found.frames["actions"]) == found.segments[0].num_frames
    failed = record_episode("turn_on_led", seed=0, environment=Blind(physics), options=options)
    assert not failed.success
    assert [(segment.task, segment.num_frames, segment.solved) for segment in failed.segments] == [
        ("turn_on_led", 64, False)
    ]


# --- relabelling ------------------------------------------------------------------------------------------------------
class Sleeper:
    """A policy that does nothing at all, and notes what it was told."""

    needs_observation = True

    def __init__(self) -> None:
        self.instructions: list[str] = []
        self.num_seen = 0

    def reset(self, instruction: str) -> None:
        self.instructions.append(instruction)

    def control(self, observation: Observation | None) -> ControlStep:
        assert observation is not None
        self.num_seen += 1
        return self.send([0.0] * 6 + [-1.0])

    @staticmethod
    def send(action: Sequence[float] | np.ndarray) -> ControlStep:
        return ControlStep(np.array(action), None)


class Drifter(Sleeper):
    """A policy that leads the arm away, upwards."""

    def control(self, observation: Observation | None) -> ControlStep:
        self.num_seen += 1
        return self.send([0.0, 0.0, 0.2, 0.0, 0.0, 0.0, 1.0])


def test_the_driver_acts_and_the_expert_labels(physics: Environment) -> None:
    driver = Sleeper()
    episode = record_episode("open_drawer", seed=1, environment=Blind(physics), driver=driver)
    frames = episode.frames
    assert driver.instructions == [episode.instruction]
    assert driver.num_seen == len(frames["actions"]) == 64
    assert not episode.success
    assert [(segment.num_frames, segment.solved) for segment in episode.segments] == [(64, False)]
    # Nothing moved, and the expert keeps asking for the same way to the handle.
    assert np.abs(frames["robot_obs"][-1, :3] - frames["robot_obs"][0, :3]).max() < 0.005
    check_action(frames["rel_actions"])
    assert np.abs(frames["rel_actions"][:, :3]).max(axis=1).min() > 0.3
    np.testing.assert_array_equal(frames["actions"][:, 6], -1.0)


def test_labels_are_the_experts_own_actions_when_the_driver_does_the_same(physics: Environment) -> None:
    class Replay(Sleeper):
        def reset(self, instruction: str) -> None:
            self.actions = iter(alone.frames["rel_actions"])

        def control(self, observation: Observation | None) -> ControlStep:
            return self.send(next(self.actions))

    alone = record_episode("turn_on_led", seed=5, environment=Blind(physics))
    driven = record_episode("turn_on_led", seed=5, environment=Blind(physics), driver=Replay())
    assert driven.success
    for name in ("robot_obs", "rel_actions", "actions"):
        np.testing.assert_array_equal(driven.frames[name], alone.frames[name])


def test_long_rollouts_are_cut_into_equal_windows(physics: Environment) -> None:
    options = RecordingOptions(max_steps=150)
    episode = record_episode("open_drawer", seed=1, environment=Blind(physics), driver=Sleeper(), options=options)
    assert [segment.num_frames for segment in episode.segments] == [50, 50, 50]
    assert {(segment.task, segment.instruction) for segment in episode.segments} == {("open_drawer", episode.instruction)}


def test_the_expert_drives_its_share(physics: Environment) -> None:
    world = Blind(physics)
    options = RecordingOptions(expert_share=0.5)
    outcomes = set()
    for seed in range(6):
        driver = Sleeper()
        episode = record_episode("turn_on_led", seed=seed, environment=world, driver=driver, options=options)
        assert episode.success == (driver.num_seen == 0)
        outcomes.add(episode.success)
    assert outcomes == {True, False}
    always = RecordingOptions(expert_share=1.0)
    assert record_episode("turn_on_led", seed=0, environment=world, driver=Sleeper(), options=always).success


def test_the_expert_takes_over_and_its_part_alone_is_recorded(physics: Environment) -> None:
    world = Blind(physics)
    options = RecordingOptions(takeover_steps=60)
    driven = []
    for seed in range(4):
        driver = Drifter()
        episode = record_episode("open_drawer", seed=seed, environment=world, driver=driver, options=options)
        driven.append(driver.num_seen)
        assert episode.success
        assert [segment.solved for segment in episode.segments] == [True]
        assert len(episode.frames["actions"]) == episode.segments[0].num_frames
        alone = record_episode("open_drawer", seed=seed, environment=world)
        moved_m = episode.frames["robot_obs"][0, :3] - alone.frames["robot_obs"][0, :3]
        assert (np.abs(moved_m).max() > 0.005) == (driver.num_seen > 3)
    assert max(driven) <= 60
    assert len(set(driven)) > 2
    again = Drifter()
    record_episode("open_drawer", seed=3, environment=world, driver=again, options=options)
    assert again.num_seen == driven[-1]


def test_a_task_that_the_driver_has_done_leaves_no_frames(physics: Environment) -> None:
    class Replay(Drifter):
        def control(self, observation: Observation | None) -> ControlStep:
            self.num_seen += 1
            return self.send(alone.frames["rel_actions"][min(self.num_seen, len(alone.frames["rel_actions"])) - 1])

    alone = record_episode("turn_on_led", seed=5, environment=Blind(physics))
    options = RecordingOptions(takeover_steps=100_000)
    driver = Replay()
    episode = record_episode("turn_on_led", seed=5, environment=Blind(physics), driver=driver, options=options)
    assert driver.num_seen <= len(alone.frames["actions"])
    assert (episode.success, episode.segments, episode.frames) == (False, (), {})


@pytest.mark.parametrize(
    ("options", "subject", "got", "expected"),
    [
        (RecordingOptions(takeover_steps=0), "takeover steps", 0, "at least 1"),
        (RecordingOptions(chain_length=0), "chain length", 0, "at least 1"),
        (RecordingOptions(max_steps=15), "max steps", 15, "at least 16"),
        (RecordingOptions(expert_share=1.5), "expert share", 1.5, "0 to 1"),
        (RecordingOptions(noise=ActionNoise(1.5)), "action noise", 1.5, "0 < noise <= 1"),
        (RecordingOptions(noise=ActionNoise(0.5, share=1.0)), "noise share", 1.0, "0 < share < 1"),
        (RecordingOptions(chain_tasks=("open_drawr",)), "task", "'open_drawr'", "... (did you mean 'open_drawer'?)"),
    ],
)
def test_options_out_of_range(options: RecordingOptions, subject: str, got: object, expected: str) -> None:
    with raises(ConfigError, subject, got=got, expected=expected):
        record_episode("turn_on_led", seed=0, options=options)
