"""Records scripted experts at work, one language-labelled episode at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rfedge.envs.experts import make_expert, prepare
from rfedge.envs.interface import Environment, make_environment
from rfedge.envs.language import sample_instruction
from rfedge.envs.oracle import TaskOracle
from rfedge.envs.tasks import TASKS, check_task
from rfedge.errors import ConfigError, explain
from rfedge.messages import ACTION_SIZE, POSE_SIZE

__all__ = ["MAX_FRAMES", "MIN_FRAMES", "SETTLE_FRAMES", "Episode", "record_episode", "record_episodes"]

MAX_FRAMES: Final = 64  # the longest window that CALVIN annotates with language
MIN_FRAMES: Final = 16  # the shortest window that CALVIN's loader draws
SETTLE_FRAMES: Final = 3  # for which the task must stay done, so that the window shows its end


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One task done once, stacked over its T frames (16 <= T <= 64).

    Attributes:
        task: one of `rfedge.envs.tasks.TASKS`.
        instruction: a training paraphrase of it, never the evaluation instruction.
        seed: with `task` and the scene, everything that decides the episode.
        success: whether the task oracle sees the task done after the last frame.
        frames: `rgb_static` uint8 (T, 200, 200, 3), `rgb_gripper` uint8 (T, 84, 84, 3), `robot_obs` float64 (T, 15),
            `scene_obs` float64 (T, 24), `rel_actions` float64 (T, 7): the action that was sent at this frame,
            `actions` float64 (T, 7): the absolute tcp pose (xyz, euler xyz) of the next frame and the gripper action.
    """

    task: str
    instruction: str
    seed: int
    success: bool
    frames: dict[str, npt.NDArray[Any]]


def record_episode(task: str, *, scene: str = "D", seed: int, environment: Environment | None = None) -> Episode:
    """Let the expert do `task` once from a random start and record what it saw and sent.

    Args:
        task: a task that has an expert, see `rfedge.envs.experts.EXPERT_TASKS`.
        scene: "A" to "D".
        seed: with task and scene decides everything, images included.
        environment: a PlayTable of the same scene to use again; building one costs more than an episode's first frames.
            The result does not depend on what was done with it before.

    Raises:
        ConfigError: the task has no expert, or the environment shows another scene.
        BackendUnavailableError: no simulator or renderer.
    """
    check_task(task)
    if environment is not None and environment.scene != scene:
        remedy = "Pass an environment of that scene, or none."
        raise ConfigError(explain("environment", got=f"scene {environment.scene}", expected=f"scene {scene}", remedy=remedy))
    # One stream a task, so that equal seeds do not give all tasks the same scene.
    rng = np.random.default_rng([TASKS.index(task), seed])
    expert = make_expert(task, scene, rng)
    instruction = sample_instruction(task, rng)
    with contextlib.ExitStack() as stack:
        if environment is None:
            environment = stack.enter_context(make_environment("playtable", scene=scene))
        prepare(task, environment, rng)
        return _roll_out(task, instruction, seed, environment, expert)


def record_episodes(
    tasks: Iterable[str], seeds: Iterable[int], *, scene: str = "D", environment: Environment | None = None
) -> Iterator[Episode]:
    """Yield one episode for every seed and task, seeds outermost, all in one environment; failed ones are included.

    Raises:
        ConfigError, BackendUnavailableError: see `record_episode`.
    """
    tasks = tuple(tasks)
    with contextlib.ExitStack() as stack:
        if environment is None:
            environment = stack.enter_context(make_environment("playtable", scene=scene))
        for seed in seeds:
            for task in tasks:
                yield record_episode(task, scene=scene, seed=seed, environment=environment)


def _roll_out(task: str, instruction: str, seed: int, environment: Environment, expert: Any) -> Episode:
    oracle = TaskOracle()
    start = environment.info()
    columns: dict[str, list[npt.NDArray[Any]]] = {
        name: [] for name in ("rgb_static", "rgb_gripper", "robot_obs", "scene_obs", "rel_actions", "actions")
    }
    solved_frames = 0  # in a row: a block that is dropped again, or only touched in passing, teaches the wrong thing
    for step in range(MAX_FRAMES):
        if solved_frames > SETTLE_FRAMES and step >= MIN_FRAMES:
            break
        seen = environment.observe()
        robot_obs, scene_obs = environment.robot_state(), environment.scene_state()
        action = expert.act(robot_obs, scene_obs)
        environment.advance(action)
        absolute = np.empty(ACTION_SIZE)
        absolute[:POSE_SIZE] = environment.robot_state()[:POSE_SIZE]
        absolute[POSE_SIZE] = action[POSE_SIZE]
        row = (seen.static, seen.gripper, robot_obs, scene_obs, action, absolute)
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
        solved_frames = solved_frames + 1 if oracle.solved(task, start, environment.info()) else 0
    success = solved_frames > 0
    frames = {name: np.stack(column) for name, column in columns.items()}
    return Episode(task=task, instruction=instruction, seed=seed, success=success, frames=frames)
