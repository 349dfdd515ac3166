"""Which of CALVIN's four scenes a frame shows, and where the things are that are fixed to its table.

`scene_info.npy` names the first and last frame of each scene of a training split; ABC and ABCD hold several. Validation
splits have no such file: they show the scene that their recorded configuration names.

The scene decides which block a part of `scene_obs` is about: elements 6 to 11, 12 to 17 and 18 to 23 are three blocks
(xyz in m, euler xyz in rad) in an order that differs, see `BLOCK_ORDER`. Statistics of `scene_obs` over several scenes
mix blocks, and whoever reads a block's pose must know the scene first.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from rfedge.data.frames import Float64Array
from rfedge.data.object_file import read_object_file
from rfedge.errors import DatasetError

SCENE_INFO_FILE: Final = "scene_info.npy"
_PREFIX: Final = "calvin_scene_"
_CONFIGURATIONS: Final = (".hydra/merged_config.yaml", ".hydra/config.yaml")

# Colours of the three blocks in scene_obs, by scene.
BLOCK_ORDER: Final = MappingProxyType(
    {
        "A": ("pink", "blue", "red"),
        "B": ("red", "blue", "pink"),
        "C": ("blue", "red", "pink"),
        "D": ("red", "blue", "pink"),
    }
)

# Source: CALVIN's scene descriptions, as `rfedge.envs.playtable.layout` measured them; a test compares the two.
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


@dataclass(frozen=True, slots=True)
class SceneFrames:
    """Frames `first` to `last`, both inclusive, that show `scene` ("A" to "D"); `last` None means all that follow."""

    scene: str
    first: int
    last: int | None

    def holds(self, frame: int) -> bool:
        return frame >= self.first and (self.last is None or frame <= self.last)


def read_scenes(folder: Path) -> tuple[SceneFrames, ...]:
    """Return the scenes of a split by first frame; empty when the split does not say."""
    path = folder / SCENE_INFO_FILE
    if not path.is_file():
        configured = _configured_scene(folder)
        return () if configured is None else (SceneFrames(configured, 0, None),)
    content = read_object_file(path)
    try:
        scenes = [
            SceneFrames(str(name).removeprefix(_PREFIX), int(first), int(last)) for name, (first, last) in content.items()
        ]
    except (TypeError, ValueError) as error:
        expected = f"{_PREFIX}X: [first frame, last frame]"
        remedy = "Copy it again."
        raise DatasetError(f"file {path}", got=f"another structure ({error})", expected=expected, remedy=remedy) from None
    for scene in scenes:
        if scene.last is not None and scene.last < scene.first:
            raise DatasetError(f"file {path}", got=str(scene), expected="first frame <= last frame", remedy="Copy it again.")
    return tuple(sorted(scenes, key=lambda scene: scene.first))


def contradicted_by(folder: Path, scenes: tuple[SceneFrames, ...]) -> str | None:
    """Return the scene that the recorded configuration of a split of one scene names, if it is another one, else None."""
    # Of several scenes, the configuration is that of one recording among them, or of the evaluation.
    configured, named = _configured_scene(folder), {scene.scene for scene in scenes}
    return configured if configured is not None and len(named) == 1 and configured not in named else None


def _configured_scene(folder: Path) -> str | None:
    """Return the one scene that the recorded configuration names, read as text: no YAML library is needed for that."""
    for name in _CONFIGURATIONS:
        try:
            text = (folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        found = set(re.findall(rf"\b{_PREFIX}([A-D])\b", text))
        if len(found) == 1:
            return str(found.pop())
    return None


def furniture_m(scene: str, scene_obs: Float64Array) -> Float64Array:
    """Return float64 (N, 4, 3), the centres in m of `FURNITURE` in states (N, 24) of scene "A" to "D"."""
    rest_m = np.column_stack([_REST_X_M[scene], _REST_YZ_M])
    places_m = np.tile(rest_m, (len(scene_obs), 1, 1))
    places_m[:, 0, 0] -= scene_obs[:, _DOOR]
    places_m[:, 1, 1] -= scene_obs[:, _DRAWER]
    places_m[:, 2, 1:] += scene_obs[:, _LEVER, None] * (math.cos(_FACE_RAD), math.sin(_FACE_RAD))
    return places_m
