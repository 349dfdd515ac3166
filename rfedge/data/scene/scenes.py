"""Which of CALVIN's four scenes a frame shows, where its table's parts are, and where a point appears in the pictures.

`scene_info.npy` names the first and last frame of each scene of a training split; ABC and ABCD hold several. Validation
splits have no such file: they show the scene that their recorded configuration names.

The scene decides which block a part of `scene_obs` is about: elements 6 to 11, 12 to 17 and 18 to 23 are three blocks
(xyz in m, euler xyz in rad) in an order that differs, see `BLOCK_ORDER`. Statistics of `scene_obs` over several scenes
mix blocks, and whoever reads a block's pose must know the scene first.

CALVIN's static camera stands still; the gripper's rides on the hand, so its pose follows from the tcp's. Places in a picture
are (u, v) in shares of its width and height from the upper left corner; outside [0, 1] a point is not in view.
Source: CALVIN's camera configuration and its Panda's URDF.
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
from rfedge.robot.rotations import euler_to_matrix

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


STATIC_EYE_M: Final = np.array([2.871459009488717, -2.166602199425597, 2.555159848480571])
_STATIC_TARGET_M: Final = np.array([-0.026242351159453392, -0.0302329882979393, 0.3920000493526459])
_STATIC_UP: Final = np.array([0.4041403970338857, 0.22629790978217404, 0.8862616969685161])
STATIC_FOV_DEG: Final = 10.0  # vertical, as the next
GRIPPER_FOV_DEG: Final = 75.0
_TCP_BEYOND_HAND_M: Final = 0.14
MOUNT_POSITION_M: Final = np.array([-0.1, 0.0, 0.0])  # in the frame of the hand
MOUNT_EULER_RAD: Final = (1.3, 0.0, -1.57)
_NEAREST_M: Final = 0.01


def _looking(forward: Float64Array, up: Float64Array) -> Float64Array:
    """Return the camera's right, down and forward axes as the rows of a matrix."""
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


STATIC_AXES: Final = _looking(_STATIC_TARGET_M - STATIC_EYE_M, _STATIC_UP)
# The mount looks along its own +y and its picture's upper side is -z.
_MOUNT_FROM_CAMERA: Final = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
_MOUNT_AXES: Final = _MOUNT_FROM_CAMERA @ euler_to_matrix(np.array(MOUNT_EULER_RAD)).T


def project_static(points_m: Float64Array) -> Float64Array:
    """World points (..., 3) -> (..., 2) in the static camera's picture."""
    return _pinhole((points_m - STATIC_EYE_M) @ STATIC_AXES.T, STATIC_FOV_DEG)


def project_gripper(points_m: Float64Array, tcp_pose: Float64Array) -> Float64Array:
    """World points (N, L, 3) -> (N, L, 2) in the picture of the hand at `tcp_pose` (N, 6), m and rad; NaN behind it."""
    hand = euler_to_matrix(tcp_pose[:, 3:6])
    from_tcp = (points_m - tcp_pose[:, None, :3]) @ hand  # into the frame of the hand
    from_tcp[..., 2] += _TCP_BEYOND_HAND_M
    return _pinhole((from_tcp - MOUNT_POSITION_M) @ _MOUNT_AXES.T, GRIPPER_FOV_DEG)


def _pinhole(seen_m: Float64Array, fov_deg: float) -> Float64Array:
    depth = np.where(seen_m[..., 2:] > _NEAREST_M, seen_m[..., 2:], np.nan)
    uv: Float64Array = 0.5 + 0.5 * seen_m[..., :2] / (depth * np.tan(0.5 * np.radians(fov_deg)))
    return uv
