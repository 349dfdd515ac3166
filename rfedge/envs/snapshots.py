"""Pictures of random states for `rfedge pretrain`: more arrangements of blocks and hand than demonstrations show.

Nothing acts, so the actions of these frames mean nothing and no policy may be trained on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rfedge.data.collection.collect import Episode, SegmentRecord
from rfedge.envs.interface import Environment, Float64Array
from rfedge.envs.playtable.layout import BLOCK_WIDTH_M, DRAWER_MAX_M, SWITCH_MAX_M, TableLayout, find_layout
from rfedge.envs.playtable.placement import SURFACES, block_slice, sample_scene
from rfedge.envs.playtable.robot import NEUTRAL_RAD, inverse, tcp_pose
from rfedge.messages import GRIPPER_CLOSE, GRIPPER_OPEN

SNAPSHOT_TASK: Final = "snapshot"
_INSTRUCTION: Final = "look at the table"
_HELD_SHARE, _NEAR_SHARE = 0.15, 0.55  # of all hands; the others are anywhere
_OPEN_M: Final = 0.08  # between the fingers
_BLOCKS_IN_DRAWER_FROM_M: Final = 0.15
_WORKSPACE_M: Final = ((-0.35, 0.38), (-0.32, 0.10), (0.34, 0.72))
_DOWN_RAD: Final = (math.pi, 0.0, 0.5 * math.pi)  # the hand as the neutral pose has it, looking down


def record_snapshots(environment: Environment, seed: int, num_frames: int) -> Episode:
    """Take pictures of `num_frames` random states; labels are the state that each came to rest in."""
    layout, rng = find_layout(environment.scene), np.random.default_rng(seed)
    rows: dict[str, list[npt.NDArray[Any]]] = {}
    for _ in range(num_frames):
        observation = environment.reset(*sample_state(layout, rng))
        robot_obs = environment.robot_state()
        row: dict[str, npt.NDArray[Any]] = {
            "rgb_static": observation.static,
            "rgb_gripper": observation.gripper,
            "robot_obs": robot_obs,
            "scene_obs": environment.scene_state(),
            "rel_actions": np.append(np.zeros(6), robot_obs[14]),
            "actions": np.append(robot_obs[:6], robot_obs[14]),
        }
        for key, value in row.items():
            rows.setdefault(key, []).append(value)
    frames = {key: np.stack(values) for key, values in rows.items()}
    segment = SegmentRecord(SNAPSHOT_TASK, _INSTRUCTION, num_frames, solved=True)
    return Episode(SNAPSHOT_TASK, _INSTRUCTION, seed, success=True, frames=frames, segments=(segment,))


def sample_state(layout: TableLayout, rng: np.random.Generator) -> tuple[Float64Array, Float64Array]:
    """Return a random robot_obs (15,) and scene_obs (24,) of a scene."""
    drawer_m = _sample_joint(DRAWER_MAX_M, rng)
    places = [*SURFACES, "table", "table"] + (["drawer"] if drawer_m > _BLOCKS_IN_DRAWER_FROM_M else [])
    scene = sample_scene(
        layout,
        rng,
        surfaces=_sample_surfaces(layout, places, rng),
        slide_m=_sample_joint(layout.slide_max_m, rng),
        drawer_m=drawer_m,
        switch_m=_sample_joint(SWITCH_MAX_M, rng),
        led_on=bool(rng.integers(2)),
    )
    scene[4] = scene[3] > 0.5 * SWITCH_MAX_M  # the bulb follows its switch
    block = str(rng.choice(layout.block_order))
    place = block_slice(layout, block)
    kind = rng.random()
    if kind < _HELD_SHARE:
        pose = _sample_pose(rng)
        joints = inverse(pose, NEUTRAL_RAD)
        held = tcp_pose(joints)
        scene[place] = [*held[:3], 0.0, 0.0, held[5] + rng.choice((0.0, math.pi))]
        return _robot_obs(joints, BLOCK_WIDTH_M, GRIPPER_CLOSE), scene
    pose = _sample_pose(rng)
    if kind < _HELD_SHARE + _NEAR_SHARE:
        away_m = np.array([*rng.normal(0.0, 0.03, 2), rng.uniform(0.0, 0.16)])
        pose[:3] = scene[place][:3] + away_m
        pose[5] = scene[place][5] % math.pi + rng.choice((0.0, 0.5 * math.pi)) - 0.25 * math.pi + rng.normal(0.0, 0.15)
    joints = inverse(pose, NEUTRAL_RAD)
    is_open = rng.random() < 0.8
    width_m = _OPEN_M if is_open else float(rng.uniform(0.0, _OPEN_M))
    return _robot_obs(joints, width_m, GRIPPER_OPEN if is_open else GRIPPER_CLOSE), scene


def _sample_surfaces(layout: TableLayout, places: Sequence[str], rng: np.random.Generator) -> dict[str, str]:
    """Return block -> place; a shelf has not always room for three."""
    while True:
        surfaces = {block: str(rng.choice(places)) for block in layout.block_order}
        if len(set(surfaces.values())) > 1 or set(surfaces.values()) == {"table"}:
            return surfaces


def _sample_joint(most_m: float, rng: np.random.Generator) -> float:
    """At either end more often than between: that is where furniture is left."""
    return float(rng.choice((0.0, most_m, rng.uniform(0.0, most_m))))


def _sample_pose(rng: np.random.Generator) -> Float64Array:
    position_m = [rng.uniform(low, high) for low, high in _WORKSPACE_M]
    return np.array([*position_m, *(_DOWN_RAD + rng.normal(0.0, (0.12, 0.12, 0.7)))])


def _robot_obs(joints: Float64Array, width_m: float, gripper: float) -> Float64Array:
    return np.concatenate([tcp_pose(joints), [width_m], joints, [gripper]])
