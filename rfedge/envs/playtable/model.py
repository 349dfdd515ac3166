"""Compiles the MuJoCo model of a scene from scene.xml; a dressed one is kept in the user's cache."""

from __future__ import annotations

import functools
import hashlib
import logging
import operator
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, Final

import numpy as np

from rfedge.envs.calvin import installation
from rfedge.envs.interface import Float64Array
from rfedge.envs.looks import Looks
from rfedge.envs.playtable import looks as shading
from rfedge.envs.playtable import skin
from rfedge.envs.playtable.layout import FACE_TILT_RAD, TableLayout, face_point
from rfedge.envs.playtable.looks import dress, plain_look, shine
from rfedge.envs.playtable.shapes import add_meshes, numbers
from rfedge.io.atomic import atomic_file
from rfedge.io.disk import cache_folder

logger = logging.getLogger(__name__)

SUBSTEPS: Final = 16  # physics steps per control step, so 480 Hz
_TERM: Final = re.compile(r"[a-z_]+|[-+]?[0-9.]+")
_SOURCES: Final = (".mtl", ".obj", ".png", ".stl", ".urdf")
_CODE: Final = tuple(Path(module.__file__ or "") for module in (installation, shading, skin))


def build_mjcf(layout: TableLayout) -> str:
    """Return scene.xml with the places and meshes of one scene filled in."""
    root = ET.parse(Path(__file__).with_name("scene.xml")).getroot()
    root.set("model", f"playtable_{layout.scene.lower()}")
    asset = root.find("asset")
    assert asset is not None
    places = _places(layout)
    for element in root.iter():
        for name in {"pos", "size", "range", "vertex", "low", "high"} & element.attrib.keys():
            element.set(name, numbers(_numbers(element.attrib[name], places)))
        if "low" in element.attrib:
            _set_corners(element)
    add_meshes(asset, layout)
    return ET.tostring(root, encoding="unicode")


def _places(layout: TableLayout) -> dict[str, float]:
    """Return the numbers that scene.xml has names for."""
    return {
        "drawer": layout.drawer_x_m,
        "switch": layout.switch_x_m,
        "led": layout.led_x_m,
        "bulb": layout.bulb_x_m,
        "handle": layout.slide_handle_x_m,
        "slide_max": layout.slide_max_m,
        **dict(zip(("button_x", "button_y"), layout.button_xy_m, strict=True)),
        **dict(zip(("cabinet_low", "cabinet_high"), layout.cabinet_x_m, strict=True)),
        **dict(zip(("door_low", "door_high"), layout.door_x_m, strict=True)),
        **{block: 0.5 * length_m for block, length_m in layout.block_lengths_m.items()},
    }


def _numbers(text: str, places: dict[str, float]) -> Float64Array:
    """Read numbers, each a sum of terms; from left to right, because rollouts depend on the last bit."""
    terms = ([places[term] if term in places else float(term) for term in _TERM.findall(word)] for word in text.split())
    return np.array([functools.reduce(operator.add, one) for one in terms])


def _set_corners(geom: ET.Element) -> None:
    """Give a box or an upright cylinder its centre and half sizes from two corners."""
    low, high = (np.array(geom.attrib.pop(name).split(), dtype=np.float64) for name in ("low", "high"))
    centre, half = 0.5 * (low + high), 0.5 * (high - low)
    if geom.attrib.pop("on", None) == "face":
        centre[1:] = face_point(centre[1], centre[2])
        geom.set("euler", f"{FACE_TILT_RAD!r} 0 0")
    geom.set("pos", numbers(centre))
    geom.set("size", numbers(half) if geom.get("type") == "box" else f"{geom.get('size')} {numbers(half[2])}")


def load_model(mujoco: Any, layout: TableLayout, looks: Looks = "playtable") -> Any:
    """Return the model of one scene."""
    mjcf = build_mjcf(layout)
    if looks != "calvin":
        model = mujoco.MjModel.from_xml_string(mjcf)
        dress(model, plain_look(layout))
        return model
    data = installation.find_data()
    path = cache_folder("playtable") / f"{layout.scene}-{_key(mujoco, mjcf, layout.scene, data)}.mjb"
    if path.is_file():
        try:
            return mujoco.MjModel.from_binary_path(str(path))
        except ValueError as error:
            logger.warning("%s is built again: %s", path, error)
    model = skin.skin_model(mujoco, mjcf, layout.scene, data)
    shine(model, plain_look(layout))
    try:
        with atomic_file(path) as temporary:
            mujoco.mj_saveModel(model, str(temporary), None)
        for stale in path.parent.glob(f"{layout.scene}-*.mjb"):
            if stale != path:
                stale.unlink(missing_ok=True)
    except OSError as error:  # a full or read-only disk costs time, not the environment
        logger.warning("the model of scene %s is not kept: %s", layout.scene, error)
    return model


def _key(mujoco: Any, mjcf: str, scene: str, data: Path) -> str:
    digest = hashlib.sha256(f"{mujoco.__version__} {scene} {mjcf}".encode())
    folders = (data / f"calvin_table_{scene}", data / "franka_panda", data / "plane")
    for path in (*_CODE, *sorted(path for folder in folders for path in folder.rglob("*"))):
        if path in _CODE or path.suffix.lower() in _SOURCES:
            content = path.read_bytes()
            digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()
