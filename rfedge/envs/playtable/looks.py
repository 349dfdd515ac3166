"""Says how a PlayTable looks - wood, colours, light, where the cameras stand - and changes a compiled scene to look so.

Shapes never change, and physics knows nothing of it. `plain_look` is CALVIN's; `random_look` strays from it, so that a
policy does not learn one shade of wood by heart (domain randomization, Tobin et al., IROS 2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from rfedge.envs.interface import Float64Array
from rfedge.envs.playtable.layout import TableLayout, Wood
from rfedge.messages import UInt8Array
from rfedge.robot.rotations import euler_to_quaternion

RGB = tuple[float, float, float]

# material -> CALVIN's colour
MATERIALS: Final[Mapping[str, RGB]] = {
    "shell": (1.0, 1.0, 1.0),
    "ring": (0.55, 0.55, 0.59),
    "vent": (0.7, 0.7, 0.72),
    "handle": (0.396, 0.396, 0.396),
    "switch": (0.4, 0.4, 0.4),
    "button": (0.0, 0.0, 0.0),
    "block_red": (1.0, 0.0, 0.0),
    "block_blue": (0.0, 0.0, 1.0),
    "block_pink": (1.0, 0.0, 1.0),
}
_SLOT_SHADE: Final = 0.72  # the bottom of a slot is in shadow
_FLOOR: Final = ((1.0, 1.0, 1.0), (0.87, 0.87, 0.87))
# CALVIN's picture is PyBullet's: colour x (a + (1 - a) I), I = (0.5 + 0.5 n.L) (1 - s + s visible), L towards the light.
SUN: Final = (-0.03, -0.2, 0.98)
_AMBIENT: Final = 0.51
_SHADOW: Final = 0.3

# How far random looks stray.
_WOOD_RGB_LOW: Final = np.array((0.30, 0.16, 0.10))
_WOOD_RGB_HIGH: Final = np.array((0.98, 0.84, 0.66))
_STATIC_SHIFT_M: Final = 0.003
_STATIC_TURN_RAD: Final = 0.0006  # a pixel of the static camera is 0.0009 rad, or 4 mm on the table
_GRIPPER_SHIFT_M: Final = 0.002
_GRIPPER_TURN_RAD: Final = 0.01

# Wood is a seeded texture of wavy streaks along the grain.
TEXTURE_SIZE: Final = 256  # pixels a side
# (cycles along the grain, cycles across it, share of the spread): broad bands, growth rings, fibres
_OCTAVES: Final = ((1.5, 3.0, 0.7), (3.0, 12.0, 0.6), (12.0, 60.0, 0.4))
_WARP_PIXELS: Final = 5.0  # by which broad waves bend the grain


@dataclass(frozen=True, slots=True)
class Look:
    """Everything that may differ between two pictures of one state."""

    # wood, panel: of table and cabinet, and of door and drawer
    wood: Wood
    panel: Wood
    grain_seed: int = 0
    floor: tuple[RGB, RGB] = _FLOOR  # the two colours of its squares
    materials: Mapping[str, RGB] = field(default_factory=lambda: MATERIALS)  # colour of every material of `MATERIALS`
    sun: RGB = SUN  # direction towards the light, in world axes
    gain: float = 1.0  # brightness of a face that looks straight into the light
    ambient: float = _AMBIENT  # of it, what a face that looks away keeps
    shadow: float = _SHADOW  # of the rest, what a shadow takes
    # static_shift, gripper_shift: x, y, z in metres and turns about x, y, z in radians of a camera, in its own axes
    static_shift: tuple[float, ...] = (0.0,) * 6
    gripper_shift: tuple[float, ...] = (0.0,) * 6


def plain_look(layout: TableLayout) -> Look:
    """Return the look of CALVIN's scene."""
    return Look(layout.wood, layout.panel)


def random_look(layout: TableLayout, rng: np.random.Generator) -> Look:
    """Return a look near or far from CALVIN's, decided by `rng`; blocks stay red, blue and pink."""
    wood = _random_wood(layout.wood, rng)
    panel = wood if rng.random() < 0.6 else _random_wood(layout.panel, rng)
    white = rng.uniform(0.9, 1.0)
    return Look(
        wood,
        panel,
        grain_seed=int(rng.integers(2**31)),
        floor=(_grey(white, rng), _grey(rng.uniform(0.7, 0.95) * white, rng)),
        materials={name: _random_colour(name, rgb, rng) for name, rgb in MATERIALS.items()},
        # To the front and back: leaning to the side, the coarse shadow map would spot the floor with shadows of its own.
        sun=(float(rng.uniform(-0.05, 0.02)), float(rng.uniform(-0.5, 0.3)), 1.0),
        gain=rng.uniform(0.85, 1.05),
        ambient=rng.uniform(0.35, 0.7),
        shadow=rng.uniform(0.1, 0.6),
        static_shift=_shift(_STATIC_SHIFT_M, _STATIC_TURN_RAD, rng),
        gripper_shift=_shift(_GRIPPER_SHIFT_M, _GRIPPER_TURN_RAD, rng),
    )


def _rgb(values: Float64Array) -> RGB:
    red, green, blue = np.clip(values, 0.0, 1.0).tolist()
    return red, green, blue


def _grey(level: float, rng: np.random.Generator) -> RGB:
    return _rgb(level + rng.uniform(-0.03, 0.03, size=3))


def _random_wood(wood: Wood, rng: np.random.Generator) -> Wood:
    """Return this wood in another light, or any wood between dark and light ones."""
    if rng.random() < 0.3:
        rgb = np.array(wood.rgb) * rng.uniform(0.85, 1.15) + rng.uniform(-0.03, 0.03, size=3)
    else:
        share = rng.random() + rng.uniform(-0.08, 0.08, size=3)
        rgb = _WOOD_RGB_LOW + share * (_WOOD_RGB_HIGH - _WOOD_RGB_LOW)
    return Wood(_rgb(rgb), float(rng.uniform(0.01, 0.08)))


def _random_colour(name: str, rgb: RGB, rng: np.random.Generator) -> RGB:
    colour = np.array(rgb)
    if name.startswith("block_"):
        # The channels that make the colour stay high, the others low; pink has no more blue than red, or it were purple.
        high = np.sort(rng.uniform(0.75, 1.0, size=3))[::-1]
        return _rgb(np.where(colour > 0.5, high, rng.uniform(0.0, 0.18, size=3)))
    if name == "button":
        return _grey(rng.uniform(0.0, 0.2), rng)
    if name == "shell":
        return _grey(rng.uniform(0.8, 1.0), rng)
    return _grey(float(colour.mean()) + rng.uniform(-0.15, 0.15), rng)


def _shift(most_m: float, most_rad: float, rng: np.random.Generator) -> tuple[float, ...]:
    return (*rng.uniform(-most_m, most_m, size=3).tolist(), *rng.uniform(-most_rad, most_rad, size=3).tolist())


def dress(model: Any, look: Look) -> None:
    """Give a compiled scene its wood, colours and light, in memory alone: a renderer must upload textures again."""
    rng = np.random.default_rng(look.grain_seed)
    for name, wood in (("wood", look.wood), ("panel", look.panel)):
        _fill_texture(model, name, paint_wood(wood, rng))
    size = int(model.texture("floor").width[0])
    rows, columns = np.indices((size, size)) // (size // 2)  # two by two squares
    squares = np.array(look.floor)[(rows + columns) % 2]
    _fill_texture(model, "floor", np.asarray((255.0 * squares).round(), dtype=np.uint8))
    slot = tuple(_SLOT_SHADE * value for value in look.wood.rgb)
    for name, rgb in {**look.materials, "slot": slot}.items():
        model.material(name).rgba[:3] = rgb
    shine(model, look)


def shine(model: Any, look: Look) -> None:
    """Give a compiled scene its light."""
    # MuJoCo adds up max(0, n.L) of its lights: two opposite ones, the lower of negative strength, are linear in n.L.
    half = 0.5 * (1.0 - look.ambient)
    unlit, lit = look.gain * (1.0 - look.shadow) * half, look.gain * look.shadow * 2.0 * half
    model.vis.headlight.ambient[:] = look.gain * look.ambient + unlit
    downwards = -np.array(look.sun) / np.linalg.norm(look.sun)
    for name, direction, strength in (("above", downwards, unlit), ("below", -downwards, -unlit), ("sun", downwards, lit)):
        light = model.light(name)
        light.dir[:], light.diffuse[:] = direction, strength


class Wardrobe:
    """Random looks for one compiled scene."""

    def __init__(self, mujoco: Any, model: Any, layout: TableLayout) -> None:
        self._mujoco, self._model, self._layout = mujoco, model, layout
        self._cameras = {
            name: (model.camera(name).pos.copy(), model.camera(name).quat.copy()) for name in ("static", "gripper")
        }

    def change(self, rng: np.random.Generator) -> None:
        """Dress the scene in other looks, cameras included; they are sampled from `rng`."""
        look = random_look(self._layout, rng)
        dress(self._model, look)
        for name, shift in (("static", look.static_shift), ("gripper", look.gripper_shift)):
            position, quaternion = self._cameras[name]
            offset, turned = np.empty(3), np.empty(4)
            self._mujoco.mju_rotVecQuat(offset, np.array(shift[:3]), quaternion)
            self._mujoco.mju_mulQuat(turned, quaternion, np.roll(euler_to_quaternion(np.array(shift[3:])), 1))
            camera = self._model.camera(name)
            camera.pos[:], camera.quat[:] = position + offset, turned


def _fill_texture(model: Any, name: str, pixels: UInt8Array) -> None:
    start = int(model.tex_adr[model.texture(name).id])
    model.tex_data[start : start + pixels.size] = pixels.ravel()


def _waves(rng: np.random.Generator, along: float, across: float) -> Float64Array:
    """Return periodic noise (size, size) of unit variance: rows across the grain, columns along it."""
    frequency = np.fft.fftfreq(TEXTURE_SIZE, 1.0 / TEXTURE_SIZE)
    slow = np.exp(-((frequency / along) ** 2))
    fast = np.exp(-(((np.abs(frequency) - across) / (0.6 * across)) ** 2))
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((TEXTURE_SIZE, TEXTURE_SIZE))) * np.outer(fast, slow)).real
    return np.asarray(noise / noise.std(), dtype=np.float64)


def paint_wood(wood: Wood, rng: np.random.Generator) -> UInt8Array:
    """Return RGB (TEXTURE_SIZE, TEXTURE_SIZE, 3); the grain runs along its rows, and it repeats without a seam."""
    waves = np.array([share * _waves(rng, along, across) for along, across, share in _OCTAVES]).sum(axis=0)
    rows, columns = np.indices(waves.shape)
    bent = (rows + _WARP_PIXELS * _waves(rng, 3.0, 2.0)).round().astype(np.int64) % TEXTURE_SIZE
    waves = waves[bent, columns]
    pixels = np.array(wood.rgb) + wood.spread / waves.std() * waves[..., np.newaxis]
    return np.asarray(np.clip(255.0 * pixels, 0.0, 255.0).round(), dtype=np.uint8)
