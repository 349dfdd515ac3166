"""Which expert does which task, and random states in which it can."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from rfedge.envs import feasibility
from rfedge.envs.chains import block_spots
from rfedge.envs.experts import handling, placing
from rfedge.envs.experts.engine import Expert
from rfedge.envs.experts.furniture import FURNITURE_TASKS, furniture_script
from rfedge.envs.experts.script import Script
from rfedge.envs.interface import BLOCKS, Environment, Float64Array
from rfedge.envs.looks import redress
from rfedge.envs.oracle import task_solved
from rfedge.envs.playtable import layout as dimensions
from rfedge.envs.playtable.layout import BASE_POSITION_M, TableLayout, find_layout
from rfedge.envs.playtable.placement import block_slice, sample_scene
from rfedge.envs.playtable.robot import NEUTRAL_ROBOT_OBS, inverse, tcp_pose
from rfedge.envs.tasks import COLOURS, KINDS, TASKS, check_task

# Half-widths of the random start pose around the neutral one.
_START_JITTER_M: Final = np.array([0.04, 0.03, 0.03])
_START_JITTER_RAD: Final = 0.1  # yaw
_START_ITERATIONS: Final = 60
_PLAIN_GAP_M: Final = 0.004
_GRASP_GAP_M: Final = 0.05  # room for a finger beside the block
_ON_TABLE: Final = ("table", "left", "right")  # how the names of tasks end that handle a block on the table

# task -> what must hold at its start; everything it does not name is sampled at random
_REQUIRED: Final[dict[str, dict[str, bool]]] = {
    "move_slider_left": {"slide_left": False},
    "move_slider_right": {"slide_left": True},
    "open_drawer": {"drawer_open": False},
    "close_drawer": {"drawer_open": True},
    "turn_on_lightbulb": {"bulb_on": False},
    "turn_off_lightbulb": {"bulb_on": True},
    "turn_on_led": {"led_on": False},
    "turn_off_led": {"led_on": True},
    "place_in_drawer": {"drawer_open": True},
    "push_into_drawer": {"drawer_open": True},
}
# tasks that begin with a block in the gripper -> where it is taken from
_GRASPED: Final = {
    "place_in_slider": ("table", "drawer"),
    "place_in_drawer": ("table", "slider"),
    "stack_block": ("table", "slider", "drawer"),
}
_LIFT_STEPS: Final = 120
_STACK_SHIFT_M: Final = 0.005  # by which the upper block may stand off the centre of the lower one
_STACK_TURN_RAD: Final = 0.1
_DRAWER_HALF_X_M: Final = 0.15  # how far from the drawer's centre a block can be pushed into it


# kind of task -> its script, called with the words of `rfedge.envs.tasks.KINDS`
_SCRIPTS: Final[dict[str, Callable[..., Script]]] = {
    "rotate": handling.rotate,
    "push": handling.push,
    "lift": handling.lift,
    "place_in_slider": placing.place_in_slider,
    "place_in_drawer": placing.place_in_drawer,
    "stack_block": placing.stack,
    "unstack_block": placing.unstack,
    "push_into_drawer": handling.push_into_drawer,
}
EXPERT_TASKS: Final = tuple(task for task, (kind, _) in KINDS.items() if kind in _SCRIPTS or task in FURNITURE_TASKS)


def make_expert(task: str, scene: str, rng: np.random.Generator) -> Expert:
    """Make the expert of `task` in `scene`, with speed and offsets from `rng`; raises ConfigError for unknown names."""
    layout, (kind, words) = find_layout(scene), KINDS[check_task(task)]
    script = furniture_script(layout, task) if task in FURNITURE_TASKS else _SCRIPTS[kind](layout, **words)
    return Expert(script, layout, rng)


def prepare_start(task: str, environment: Environment, seed: int, *, anywhere: bool = False) -> Expert:
    """Restore `environment` to the start number `seed` of `task`, and return its expert; raises ConfigError for unknown
    tasks.
    """
    rng = np.random.default_rng([TASKS.index(check_task(task)), seed])
    expert = make_expert(task, environment.scene, rng)
    redress(environment, (TASKS.index(task), seed))
    prepare(task, environment, rng, anywhere=anywhere)
    return expert


def prepare(
    task: str, environment: Environment, rng: np.random.Generator, *, anywhere: bool = False, at_spots: bool = False
) -> None:
    """Restore `environment` to a random state from which `task` can be done, with the arm near its neutral pose.

    A block that is to be handled starts where hand and arm get at it easily, so that the episode fits into one window of
    64 frames; with `anywhere` it starts anywhere in the area from which CALVIN samples, and with `at_spots` blocks stand
    within 15 mm of where CALVIN's chains begin. The same state of `rng` gives the same start in every environment. Raises
    ConfigError for an unknown task.
    """
    check_task(task)
    sampler = _Sampler(find_layout(environment.scene), rng, anywhere, at_spots)
    if task not in _GRASPED:
        start = sampler.start()  # before the scene: seeds of earlier records count on it
        environment.restore(start, sampler.scene(task, _REQUIRED.get(task, {})))
        return
    while not sampler.lift_first(task, environment):
        pass  # the expert misses a few in a hundred


@dataclass(frozen=True, slots=True)
class _Sampler:
    """Samples starts of tasks in one scene; `anywhere` and `at_spots` as in `prepare`."""

    layout: TableLayout
    rng: np.random.Generator
    anywhere: bool
    at_spots: bool

    def lift_first(self, task: str, environment: Environment) -> bool:
        """Let the lifting expert take a random block up; return whether it did."""
        colour, place = str(self.rng.choice(COLOURS)), str(self.rng.choice(_GRASPED[task]))
        lift = f"lift_{colour}_block_{place}"
        scene_obs = self.scene(lift, _REQUIRED.get(task, {}), spread=task == "stack_block")
        environment.restore(self.start(), scene_obs)
        expert, start = make_expert(lift, self.layout.scene, self.rng), environment.info()
        for _ in range(_LIFT_STEPS):
            environment.advance(expert.act(environment.robot_state(), environment.scene_state()))
            info = environment.info()
            if task_solved(lift, start, info):
                return {body for body, _ in info.robot_contacts} == {f"block_{colour}"}
        return False

    def start(self) -> Float64Array:
        """Return robot_obs (15,) near the neutral pose."""
        pose = NEUTRAL_ROBOT_OBS[:6].copy()
        pose[:3] += self.rng.uniform(-1.0, 1.0, size=3) * _START_JITTER_M
        pose[5] += self.rng.uniform(-1.0, 1.0) * _START_JITTER_RAD
        joints = inverse(pose, NEUTRAL_ROBOT_OBS[7:14], iterations=_START_ITERATIONS)
        robot_obs = NEUTRAL_ROBOT_OBS.copy()
        robot_obs[:6], robot_obs[7:14] = tcp_pose(joints), joints
        return robot_obs

    def scene(self, task: str, required: dict[str, bool], *, spread: bool = False) -> Float64Array:
        """Return scene_obs (24,) for a task; `spread` leaves no block but the handled one off the table."""
        if task in ("unstack_block", "push_into_drawer"):
            return self._free_scene(task, required)
        handled = next((block for block in BLOCKS if block.removeprefix("block_") in task.split("_")), None)
        at_spots = self.at_spots and not spread  # three blocks on the table, which has two spots
        gap_m = _PLAIN_GAP_M if handled is None else _GRASP_GAP_M
        # Door and surfaces are sampled again with the blocks: in some scenes one side of the cabinet is out of reach.
        while True:
            state = self._state(required)
            surfaces = self._surfaces(task, handled, slide_left=state["slide_left"])
            if spread:
                surfaces |= {block: "table" for block in BLOCKS if block != handled}
            scene_obs = self._blocks(state, surfaces, gap_m, at_spots=at_spots)
            if handled is None or self.anywhere or _is_workable(task, self.layout, scene_obs, handled):
                return scene_obs

    def _free_scene(self, task: str, required: dict[str, bool]) -> Float64Array:
        """Return a scene in which any block may be the one that is handled."""
        layout, rng = self.layout, self.rng
        while True:
            blocks = [str(block) for block in rng.permutation(BLOCKS)]
            state = self._state(required)
            surfaces = {blocks[0]: "table", blocks[1]: "slider_left", blocks[2]: str(rng.choice(("table", "slider_right")))}
            scene_obs = self._blocks(state, surfaces, _GRASP_GAP_M, at_spots=self.at_spots)
            lower = scene_obs[block_slice(layout, blocks[0])]
            if not self.anywhere and not _is_workable("lift_block_table", layout, scene_obs, blocks[0]):
                continue
            if task == "push_into_drawer":
                if abs(lower[0] - layout.drawer_x_m) < _DRAWER_HALF_X_M:
                    return scene_obs
                continue
            upper = scene_obs[block_slice(layout, blocks[1])]
            upper[:] = lower
            upper[:2] += rng.uniform(-1.0, 1.0, size=2) * _STACK_SHIFT_M
            upper[2] += dimensions.BLOCK_WIDTH_M
            upper[5] += rng.uniform(-1.0, 1.0) * _STACK_TURN_RAD + rng.integers(2) * 0.5 * math.pi
            return scene_obs

    def _state(self, required: dict[str, bool]) -> dict[str, bool]:
        # What is required is sampled too, and then overruled: so it does not move the samples that follow.
        names = ("slide_left", "drawer_open", "bulb_on", "led_on")
        return {name: bool(self.rng.integers(2)) for name in names} | required

    def _blocks(self, state: dict[str, bool], surfaces: dict[str, str], gap_m: float, *, at_spots: bool) -> Float64Array:
        """Sample the blocks' poses on their surfaces; a drawer that a block lies in is open whatever `state` says."""
        drawer_open = state["drawer_open"] or "drawer" in surfaces.values()
        return sample_scene(
            self.layout,
            self.rng,
            surfaces=surfaces,
            slide_m=self.layout.slide_max_m if state["slide_left"] else 0.0,
            drawer_m=dimensions.DRAWER_MAX_M if drawer_open else 0.0,
            switch_m=dimensions.SWITCH_MAX_M if state["bulb_on"] else 0.0,
            bulb_on=state["bulb_on"],
            led_on=state["led_on"],
            gap_m=gap_m,
            spots=block_spots(self.layout) if at_spots else None,
        )

    def _surfaces(self, task: str, handled: str | None, *, slide_left: bool) -> dict[str, str]:
        """Spread the blocks as CALVIN's benchmark does: one or two on the table, at most one on each cabinet side."""
        order = [str(block) for block in self.rng.permutation(BLOCKS)]
        sides = [str(side) for side in self.rng.permutation(("slider_left", "slider_right"))]
        alone = task.startswith("push_") or bool(self.rng.integers(2))
        if handled is None or task.endswith(_ON_TABLE):
            if handled is not None:
                order.sort(key=lambda block: block != handled)
            return {order[0]: "table", order[1]: sides[0], order[2]: sides[1] if alone else "table"}
        # The open side of the cabinet is the one that the door does not cover.
        open_side = "slider_right" if slide_left else "slider_left"
        others = [block for block in order if block != handled]
        return {handled: "drawer" if task.endswith("drawer") else open_side, others[0]: "table", others[1]: "table"}


def _is_workable(task: str, layout: TableLayout, scene_obs: Float64Array, block: str) -> bool:
    """Return whether the block can be gripped, pushed or turned from where it stands, as the task asks."""
    x_m, y_m, _, _, _, yaw_rad = scene_obs[block_slice(layout, block)]
    sign = 0.0 if not task.startswith("push_") else 1.0 if task.endswith("right") else -1.0
    behind_m = x_m - sign * feasibility.BEHIND_M
    if math.hypot(behind_m - BASE_POSITION_M[0], y_m - BASE_POSITION_M[1]) > feasibility.REACH_M:
        return False
    turn_rad = abs(math.remainder(yaw_rad - 0.5 * math.pi, math.pi))
    if task.endswith("drawer"):
        return turn_rad < feasibility.DRAWER_YAW_RAD
    if task.endswith("slider"):
        # The hand is wide: beside the door or a wall, or turned away from the cabinet's direction, it does not fit in.
        door_low_m, door_high_m = (x - scene_obs[0] for x in layout.door_x_m)
        low_m, high_m = layout.opening_x_m
        low_m, high_m = (door_high_m, high_m) if x_m > door_low_m else (low_m, door_low_m)
        return (
            bool(low_m + feasibility.HALF_HAND_M < x_m < high_m - feasibility.HALF_HAND_M)
            and turn_rad < feasibility.SHELF_YAW_RAD
        )
    low_m, high_m = layout.table_area_m[0]
    has_room = y_m < feasibility.CABINET_Y_M and low_m <= x_m + sign * feasibility.PUSH_ROOM_M <= high_m
    return bool(has_room and (turn_rad < feasibility.ROTATE_YAW_RAD or not task.startswith("rotate_")))
