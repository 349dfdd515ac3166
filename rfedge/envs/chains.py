"""CALVIN's chains of five tasks: the symbolic start states, what each task needs and changes there, and their sampling.

A chain starts in one of 192 symbolic states. A task fits into a state when exactly one of its rules does; five tasks
make a chain when each fits into the state that the ones before it left, and no two are of one category. Rules,
categories and the order of the random samples are CALVIN's, so the 1000 chains are the ones that the benchmark has always
been run on: `OFFICIAL_SHA256` is their hash.

One rule contradicts the table: a block that is placed in the slider counts as on the side that the door hides. That is
CALVIN's, and 5 of the 1000 chains place a block there and later lift it.

How an environment restores a chain's start is CALVIN's too: it hashes the text of the state's values, seeds numpy's legacy
generator with it, and samples which spot on the table each block gets and how it is turned.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rfedge.envs.interface import SCENE_STATE_SIZE, Float64Array
from rfedge.envs.playtable.layout import CHAIN_YAW_RAD, DRAWER_MAX_M, LAYOUTS, SWITCH_MAX_M, TableLayout, find_layout
from rfedge.envs.tasks import COLOURS, KINDS, TASKS, check_task
from rfedge.errors import ConfigError
from rfedge.jobs.progress import Count
from rfedge.messages import GRIPPER_OPEN

CHAIN_LENGTH: Final = 5
NUM_OFFICIAL: Final = 1000
OFFICIAL_SHA256: Final = "90191d9ac76baecb4f292ab766bbbf3ae65dbf43a83bbe5c376d99db10fd6446"
_SHUFFLE_SEED: Final = 0
# Samples taken at once: few are wasted after the last valid one, and numpy's cost per call is small against them.
_SAMPLES_AT_ONCE: Final = 4096
_NO_STATE: Final = -1

Value = str | int


@dataclass(frozen=True, slots=True)
class SymbolicState:
    """State of a scene as the chains see it; the order of the fields decides CALVIN's hash of it."""

    # led, lightbulb: 0 or 1
    led: int
    lightbulb: int
    slider: str  # where the door is, "left" or "right"
    drawer: str  # "open" or "closed"
    # red_block, blue_block, pink_block: "table", "slider_left", "slider_right", "drawer", "grasped", "stacked_top" or
    # "stacked_bottom"
    red_block: str
    blue_block: str
    pink_block: str
    grasped: int = 0  # 1 while the gripper holds a block


@dataclass(frozen=True, slots=True)
class Chain:
    """Five consecutive tasks, without a reset between them."""

    state: SymbolicState
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    condition: Mapping[str, tuple[Value, ...]]  # field of the state -> values it may have
    effect: Mapping[str, Value]  # field of the state -> value it has afterwards

    def applies(self, state: SymbolicState) -> bool:
        return all(getattr(state, field) in allowed for field, allowed in self.condition.items())


@functools.cache
def initial_states() -> tuple[SymbolicState, ...]:
    """Return the 192 states that chains start in: one or two blocks on the table, at most one on each slider side."""
    places = ("table", "slider_right", "slider_left")
    placements = [
        blocks
        for blocks in itertools.product(places, repeat=len(COLOURS))
        if blocks.count("table") in (1, 2) and blocks.count("slider_right") < 2 and blocks.count("slider_left") < 2
    ]
    states = itertools.product((0, 1), (0, 1), ("right", "left"), ("closed", "open"), placements)
    return tuple(
        SymbolicState(led, bulb, slider, drawer, red, blue, pink) for led, bulb, slider, drawer, (red, blue, pink) in states
    )


def state_after(state: SymbolicState, task: str) -> SymbolicState | None:
    """Return the state that `task` leaves, or None when not exactly one of its rules applies."""
    rules = [rule for rule in _rules()[check_task(task)] if rule.applies(state)]
    if len(rules) != 1:
        return None
    changes: Mapping[str, Any] = rules[0].effect
    return replace(state, **changes)


def make_chains(num: int = NUM_OFFICIAL, *, of: int | None = None, on_progress: Count | None = None) -> tuple[Chain, ...]:
    """Return the first `num` of CALVIN's `of` chains, by default of the official 1000; raises ConfigError beyond them.

    CALVIN samples a given number of chains and shuffles them, so the first 10 of 1000 are not the chains it samples for 10.
    """
    total = max(num, NUM_OFFICIAL) if of is None else of
    if not 1 <= num <= total:
        expected = "at least 1" if of is None else f"1 to {of}"
        raise ConfigError("number of chains", got=num, expected=expected, remedy="Ask for another number.")
    counts = [len(part) for part in np.array_split(np.arange(total), len(initial_states()))]
    slots = [(index, place) for index, count in enumerate(counts) for place in range(count)]
    np.random.RandomState(_SHUFFLE_SEED).shuffle(slots)
    wanted = sorted({index for index, _ in slots[:num]})
    _transitions()  # once, not once a thread
    sampled: dict[int, tuple[Chain, ...]] = {}
    pool = ThreadPoolExecutor(os.cpu_count())  # numpy samples without holding the interpreter's lock
    try:
        for index, found in zip(wanted, pool.map(lambda index: _sample_chains(index, counts[index]), wanted), strict=True):
            sampled[index] = found
            if on_progress is not None:
                on_progress(len(sampled), len(wanted))
    finally:
        pool.shutdown(cancel_futures=True)
    return tuple(sampled[index][place] for index, place in slots[:num])


def chains_sha256(chains: Iterable[Chain]) -> str:
    """Return the hash of the chains as compact JSON with sorted keys."""
    document = [[asdict(chain.state), list(chain.tasks)] for chain in chains]
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# --- what tasks need and change -------------------------------------------------------------------------------------
@functools.cache
def _rules() -> dict[str, tuple[Rule, ...]]:
    """Return task -> its rules, of chains.json with every block, side and order of the other two blocks in it."""
    table: dict[str, dict[str, Rule]] = {task: {} for task in TASKS}
    names = ("block", "other", "third", "side", "far_side")
    templates = json.loads(Path(__file__).with_suffix(".json").read_text())
    for blocks, sides in itertools.product(
        itertools.permutations(f"{colour}_block" for colour in COLOURS), (("left", "right"), ("right", "left"))
    ):
        for template in templates:
            text = json.dumps(template)
            for name, word in zip(names, (*blocks, *sides), strict=True):
                text = text.replace(f"{{{name}}}", word)
            task, condition, effect = json.loads(text)
            allowed = {field: tuple(value) if isinstance(value, list) else (value,) for field, value in condition.items()}
            # One that names fewer words, or two blocks alike, comes up again.
            table[task][json.dumps([condition, effect], sort_keys=True)] = Rule({"grasped": (0,), **allowed}, effect)
    return {task: tuple(rules.values()) for task, rules in table.items()}


def _category_bits() -> npt.NDArray[np.int16]:
    """Return a bit for each task, the same for all of its category."""
    joined = {"push": "rotate", "close_drawer": "open_drawer", "place_in_drawer": "place_in_slider"}
    names = [joined.get(kind, kind) + words.get("place", "") for kind, words in (KINDS[task] for task in TASKS)]
    return np.array([1 << sorted(set(names)).index(name) for name in names], dtype=np.int16)


# --- sampling -------------------------------------------------------------------------------------------------------
@functools.cache
def _transitions() -> tuple[dict[SymbolicState, int], npt.NDArray[np.int16]]:
    """Number every reachable state and tabulate `state_after`: (state, task) -> state, or `_NO_STATE`."""
    numbers = {state: number for number, state in enumerate(initial_states())}
    rows = []
    for state in (queue := list(numbers)):
        row = []
        for task in TASKS:
            following = state_after(state, task)
            if following is not None and following not in numbers:
                numbers[following] = len(numbers)
                queue.append(following)
            row.append(_NO_STATE if following is None else numbers[following])
        rows.append(row)
    rows.append([_NO_STATE] * len(TASKS))  # the row that _NO_STATE indexes
    return numbers, np.array(rows, dtype=np.int16)


@functools.cache
def _sample_chains(index: int, count: int) -> tuple[Chain, ...]:
    """Sample `count` chains that start in `initial_states()[index]`.

    CALVIN seeds with the state's index and calls `choice(34 tasks, 5, replace=False)` until the sample is a chain: for
    1000 chains, seven million times. `choice` is the head of a permutation, and a permutation is a Fisher-Yates shuffle
    whose partners are bounded integers, so one call of `randint` with an array of bounds samples the same numbers for
    thousands of permutations.
    """
    state = initial_states()[index]
    _, transitions = _transitions()
    category_bits = _category_bits()
    rng = np.random.RandomState(index)
    bounds = np.tile(np.arange(len(TASKS), 1, -1), (_SAMPLES_AT_ONCE, 1))
    chains: list[Chain] = []
    while len(chains) < count:
        partners = np.ascontiguousarray(rng.randint(0, bounds).T.astype(np.int8))
        first = _element_at(0, partners)
        fitting = np.flatnonzero(transitions[index, first] != _NO_STATE)
        partners = np.ascontiguousarray(partners[:, fitting])
        tasks = np.stack([first[fitting], *(_element_at(place, partners) for place in range(1, CHAIN_LENGTH))])
        bits = category_bits[tasks]
        # A sum of distinct powers of two is their union.
        tasks = tasks[:, bits.sum(axis=0) == np.bitwise_or.reduce(bits, axis=0)]
        reached = np.full(tasks.shape[1], index, dtype=np.int16)
        for row in tasks:
            reached = transitions[reached, row]
        valid = tasks[:, reached != _NO_STATE]
        chains.extend(Chain(state, tuple(TASKS[task] for task in column)) for column in valid.T)
    return tuple(chains[:count])


def _element_at(place: int, partners: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Return what shuffles of 0, 1, 2, ... put at `place`; `partners` (n - 1, shuffle) of positions n - 1, ..., 1."""
    position = np.full(partners.shape[1], place, dtype=np.int8)
    # Backwards through the exchanges, to where the element began.
    for exchanged, partner in enumerate(partners[::-1], start=1):
        moved = np.where(position == partner, np.int8(exchanged), position)
        position = np.where(position == exchanged, partner, moved)
    return position


_FNV_PRIME: Final = 0x01000193
_TCP_AND_WIDTH: Final = (0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963)
_JOINTS_RAD: Final = (-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928)
# as they stand in scene D
_TABLE_SPOTS_M: Final = ((0.0500000896, -0.120000177, 0.459990009), (0.229995412, -0.11999514, 0.45999001))
_SHELF_SPOTS_M: Final = {
    "slider_left": (-0.240851662, 0.0924044687, 0.460990009),
    "slider_right": (0.070341633, 0.0924044687, 0.460990009),
}


def condition_seed(state: SymbolicState) -> int:
    """Return CALVIN's seed of `state`: `pyhash.fnv1_32` (from 0, over UTF-16-LE) of the text of a dictionary's values."""
    values = ", ".join(repr(value) for value in astuple(state))
    seed = 0
    for byte in f"dict_values([{values}])".encode("utf-16-le"):
        seed = (seed * _FNV_PRIME & 0xFFFFFFFF) ^ byte
    return seed


def initial_state(state: SymbolicState, scene: str = "D") -> tuple[Float64Array, Float64Array]:
    """Return robot_obs (15,) and scene_obs (24,) of a chain's start, see `rfedge.envs.interface.Environment`.

    CALVIN defines them for scene D alone. In another scene the door goes to that scene's own maximum, the spots keep
    their place relative to the middle of the table's block area and to the cabinet, and the blocks come in the scene's
    order.

    Raises:
        ConfigError: the scene is not one of A to D, or a block of `state` is neither on the table nor in the slider.
    """
    layout = find_layout(scene)
    rng = np.random.RandomState(condition_seed(state))
    spots = list(_TABLE_SPOTS_M)
    rng.shuffle(spots)
    scene_obs = np.zeros(SCENE_STATE_SIZE)
    scene_obs[0] = layout.slide_max_m if state.slider == "left" else 0.0
    scene_obs[1] = DRAWER_MAX_M if state.drawer == "open" else 0.0
    scene_obs[3] = SWITCH_MAX_M if state.lightbulb else 0.0
    scene_obs[4], scene_obs[5] = state.lightbulb, state.led
    # Blue takes the second spot only beside a red block, pink always: with one or two blocks on the table none is shared.
    spot_of = {"red": 0, "blue": 1 if state.red_block == "table" else 0, "pink": 1}
    for colour in COLOURS:
        place = str(getattr(state, f"{colour}_block"))
        if place not in ("table", *_SHELF_SPOTS_M):
            expected = f"one of {', '.join(('table', *_SHELF_SPOTS_M))}"
            raise ConfigError("place of a block", got=repr(place), expected=expected, remedy="Start from an initial state.")
        position_m = np.array(spots[spot_of[colour]] if place == "table" else _SHELF_SPOTS_M[place])
        position_m[0] += _shift_m(place, layout)
        first = 6 + 6 * layout.block_order.index(f"block_{colour}")
        scene_obs[first : first + 3] = position_m
        scene_obs[first + 5] = rng.uniform(*CHAIN_YAW_RAD)
    return np.array([*_TCP_AND_WIDTH, *_JOINTS_RAD, GRIPPER_OPEN]), scene_obs


def block_spots(layout: TableLayout) -> dict[str, tuple[tuple[float, float], ...]]:
    """Return surface -> (x, y) in m of the places at which blocks stand when a chain begins."""
    spots_m = {"table": _TABLE_SPOTS_M} | {shelf: (spot_m,) for shelf, spot_m in _SHELF_SPOTS_M.items()}
    return {
        surface: tuple((x_m + _shift_m(surface, layout), y_m) for x_m, y_m, _ in places_m)
        for surface, places_m in spots_m.items()
    }


def _shift_m(place: str, layout: TableLayout) -> float:
    """How far along x a spot of scene D lies from its counterpart in `layout`."""
    own, original = layout, LAYOUTS["D"]
    if place != "table":
        return own.cabinet_x_m[0] - original.cabinet_x_m[0]
    return 0.5 * (sum(own.table_area_m[0]) - sum(original.table_area_m[0]))
