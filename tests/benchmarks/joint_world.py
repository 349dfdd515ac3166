"""A world of doors and lights without blocks to move, and an agent whose luck is its seed: real enough for the oracle."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass

import numpy as np

from rfedge.benchmarks.success.chains import ChainPlan
from rfedge.envs.chains import Chain, initial_states
from rfedge.envs.interface import BLOCKS, BlockState, Float64Array, SceneInfo
from rfedge.messages import Observation
from rfedge.runtimes.rollout import ExpertController
from rfedge.runtimes.rollout.rollout_session import Subtask

# component of the action -> what it moves, in metres or by being above 0
DRAWER, SLIDE, BULB, LED = range(4)
MOVES = {
    "open_drawer": (DRAWER, 1.0),
    "close_drawer": (DRAWER, -1.0),
    "move_slider_left": (SLIDE, 1.0),
    "move_slider_right": (SLIDE, -1.0),
    "turn_on_lightbulb": (BULB, 1.0),
    "turn_off_lightbulb": (BULB, -1.0),
    "turn_on_led": (LED, 1.0),
    "turn_off_led": (LED, -1.0),
}
STEP_M = 0.02


def joint_chains(count: int) -> tuple[Chain, ...]:
    """Chains that the world can do, from start states in which each of their tasks is open."""
    starts = [state for state in initial_states() if (state.led, state.drawer, state.slider) == (0, "closed", "right")]
    chains = []
    for index in range(count):
        state = starts[index % len(starts)]
        bulb = "turn_off_lightbulb" if state.lightbulb else "turn_on_lightbulb"
        tasks = ["open_drawer", "move_slider_left", bulb, "turn_on_led", "close_drawer"]
        chains.append(Chain(state, tuple(tasks[index % 2 : 4] + tasks[: index % 2] + tasks[4:])))
    return tuple(chains)


class JointWorld:
    """Moves what the action says by 0.02 m a step."""

    control_hz, renderer, looks, scene, block_order = 30, "none", "joints", "D", BLOCKS

    def __init__(self) -> None:
        self.robot_obs = np.zeros(15)
        self.scene_obs = np.zeros(24)
        self.num_frames = 0
        self.is_closed = False

    def restore(self, robot_obs: Float64Array, scene_obs: Float64Array) -> None:
        self.robot_obs, self.scene_obs = robot_obs.copy(), scene_obs.copy()

    def advance(self, action: Float64Array) -> None:
        assert action.shape == (7,)
        assert action[6] in (-1.0, 1.0)
        self.scene_obs[1] += STEP_M * action[DRAWER]
        self.scene_obs[0] += STEP_M * action[SLIDE]
        for light, component in ((4, BULB), (5, LED)):
            if action[component]:
                self.scene_obs[light] = float(action[component] > 0)

    def observe(self) -> Observation:
        self.num_frames += 1
        return Observation(
            static=np.full((200, 200, 3), 90, dtype=np.uint8), gripper=np.full((84, 84, 3), 200, dtype=np.uint8)
        )

    def robot_state(self) -> Float64Array:
        return self.robot_obs.copy()

    def scene_state(self) -> Float64Array:
        return self.scene_obs.copy()

    def info(self) -> SceneInfo:
        still = BlockState(np.zeros(3), np.array([0.0, 0, 0, 1]), np.zeros(3), np.zeros(3), frozenset({("table", "x")}))
        slide, drawer, button, switch, bulb, led = self.scene_obs[:6]
        return SceneInfo(
            doors={"base__slide": slide, "base__drawer": drawer},
            buttons={"base__button": button},
            switches={"base__switch": switch},
            lights={"lightbulb": bool(bulb), "led": bool(led)},
            blocks=dict.fromkeys(BLOCKS, still),
            robot_contacts=frozenset(),
        )

    def close(self) -> None:
        self.is_closed = True


@dataclass(frozen=True)
class JointSimulator:
    """Opens it."""

    name: str = "joints"
    scene: str = "D"

    def open(self) -> JointWorld:
        return JointWorld()


class RenderedElsewhere(JointSimulator):
    """Opens the same world on a machine that renders otherwise."""

    def open(self) -> JointWorld:
        world = JointWorld()
        world.renderer = "osmesa"
        return world


@dataclass(frozen=True)
class LuckyAgentFactory:
    """Makes agents; `slow_s` is how long each takes over an action."""

    slow_s: float = 0.0

    def __call__(self) -> LuckyAgent:
        return LuckyAgent(self.slow_s)


class LuckyAgent:
    """Gives each task its lucky expert."""

    def __init__(self, slow_s: float = 0.0) -> None:
        self._slow_s = slow_s
        self.heard: list[Subtask] = []

    def __call__(self, subtask: Subtask, environment: JointWorld) -> ExpertController:
        self.heard.append(subtask)
        return ExpertController(LuckyExpert(subtask, self._slow_s), environment)


class LuckyExpert:
    """Waits for some steps, then does the task; one task in six it never does. Its seed decides both."""

    def __init__(self, subtask: Subtask, slow_s: float) -> None:
        rng = np.random.default_rng(subtask.seed)
        self._wait = int(rng.integers(12)) if rng.random() > 1 / 6 else 10_000
        self._move = MOVES[subtask.task]
        self._slow_s = slow_s

    def act(self, robot_obs: Float64Array, scene_obs: Float64Array) -> Float64Array:
        time.sleep(self._slow_s)
        action = np.zeros(7)
        action[6] = 1.0
        self._wait -= 1
        if self._wait < 0:
            action[self._move[0]] = self._move[1]
        return action


def lucky_plan(**changes: object) -> ChainPlan:
    """Forty steps a task are enough for the lucky ones."""
    slow_s = float(os.environ.get("SLOW_S", "0"))
    plan = ChainPlan(LuckyAgentFactory(slow_s), "lucky", world=JointSimulator(), max_steps=40, seed=3)  # type: ignore[arg-type]
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]
