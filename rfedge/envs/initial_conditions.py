"""The start of a chain as an environment restores it: CALVIN's placement of a symbolic state, seeded by the state itself.

CALVIN hashes the text of the state's values, seeds numpy's legacy generator with it, and samples which spot on the table
each block gets and how it is turned. All lengths are metres in world coordinates.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import Final

import numpy as np

from rfedge.envs.chains import SymbolicState
from rfedge.envs.interface import SCENE_STATE_SIZE, Float64Array
from rfedge.envs.playtable.layout import CHAIN_YAW_RAD, DRAWER_MAX_M, LAYOUTS, SWITCH_MAX_M, TableLayout, find_layout
from rfedge.envs.tasks import COLOURS
from rfedge.errors import ConfigError
from rfedge.messages import GRIPPER_OPEN

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
        position_m = np.array(spots[spot_of[colour]] if place == "table" else _shelf_spot(place))
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


def _shelf_spot(place: str) -> tuple[float, float, float]:
    if place not in _SHELF_SPOTS_M:
        expected = ", ".join(("table", *_SHELF_SPOTS_M))
        raise ConfigError(
            "place of a block", got=repr(place), expected=f"one of {expected}", remedy="Start from an initial state."
        )
    return _SHELF_SPOTS_M[place]


def _shift_m(place: str, layout: TableLayout) -> float:
    """How far along x a spot of scene D lies from its counterpart in `layout`."""
    own, original = layout, LAYOUTS["D"]
    if place != "table":
        return own.cabinet_x_m[0] - original.cabinet_x_m[0]
    return 0.5 * (sum(own.table_area_m[0]) - sum(original.table_area_m[0]))
