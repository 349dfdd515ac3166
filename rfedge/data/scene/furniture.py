"""Where the things that are fixed to CALVIN's table are: a function of the scene and of its joints.

Source: CALVIN's four scene descriptions, as `rfedge.envs.playtable.layout` measured them; a test compares the two.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

FURNITURE: Final = ("door handle", "drawer handle", "lever", "button")
_DOOR, _DRAWER, _LEVER = 0, 1, 3  # places in scene_obs
# Centres at joint position 0, in the order of `FURNITURE`; y and z are the same in all scenes but for the button's.
_REST_YZ_M: Final = ((0.018, 0.568), (-0.2475, 0.36), (0.005, 0.527), (-0.12, 0.485))
_REST_X_M: Final = MappingProxyType(
    {
        "A": (0.04, 0.10, 0.30, -0.28),
        "B": (0.23, 0.18, -0.32, 0.28),
        "C": (0.20, 0.10, -0.32, -0.12),
        "D": (0.04, 0.18, 0.30, -0.12),
    }
)
_FACE_RAD: Final = math.radians(60.0)  # of the cabinet, up which the lever runs


def furniture_m(scene: str, scene_obs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return float64 (N, 4, 3), the centres in m of `FURNITURE` in states (N, 24) of scene "A" to "D"."""
    rest_m = np.column_stack([_REST_X_M[scene], _REST_YZ_M])
    places_m = np.tile(rest_m, (len(scene_obs), 1, 1))
    places_m[:, 0, 0] -= scene_obs[:, _DOOR]
    places_m[:, 1, 1] -= scene_obs[:, _DRAWER]
    places_m[:, 2, 1:] += scene_obs[:, _LEVER, None] * (math.cos(_FACE_RAD), math.sin(_FACE_RAD))
    return places_m
