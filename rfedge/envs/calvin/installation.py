"""Finds an installed calvin_env and reads which meshes it draws where, without importing it."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from rfedge.envs.interface import Float64Array
from rfedge.errors import ArtifactError, BackendUnavailableError
from rfedge.robot.rotations import euler_to_matrix

PYTHON_VARIABLE: Final = "RFEDGE_CALVIN_PYTHON"
FOLDER_VARIABLE: Final = "RFEDGE_CALVIN_ENV"
Frame = tuple[Float64Array, Float64Array]  # position (3,) in metres, rotation (3, 3)

_ASK: Final = "import importlib.util as u; s = u.find_spec('calvin_env'); print(s and s.origin or '')"
_ASK_TIMEOUT_S: Final = 60.0


def find_data() -> Path:
    """Return the folder `data` of the calvin_env that `RFEDGE_CALVIN_ENV` names, or that `RFEDGE_CALVIN_PYTHON` imports."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        data, got = Path(folder) / "data", f"{FOLDER_VARIABLE}={folder}"
    else:
        interpreter = os.environ.get(PYTHON_VARIABLE) or sys.executable
        got = f"{interpreter!r} without it"
        try:
            # Elsewhere than here: a folder calvin_env in the working directory would hide the package.
            asked = subprocess.run(
                [interpreter, "-c", _ASK], cwd="/", capture_output=True, text=True, timeout=_ASK_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _missing(f"{interpreter!r} ({error})") from error
        origin = asked.stdout.strip()
        data = Path(origin).resolve().parents[1] / "data" if origin else Path()
    if not (data / "franka_panda").is_dir():
        raise _missing(got)
    return data


def _missing(got: str) -> BackendUnavailableError:
    remedy = (
        f"Set {FOLDER_VARIABLE} to a clone of github.com/mees/calvin_env, or {PYTHON_VARIABLE} to an interpreter that has "
        "it; see docs/how-to/install_calvin.md."
    )
    return BackendUnavailableError("calvin_env", got=got, expected="its meshes for --looks calvin", remedy=remedy)


@dataclass(frozen=True, slots=True, eq=False)
class Visual:
    """One mesh or box that a link shows."""

    links: tuple[str, ...]  # the link's name, then those that carry it, up to the root's
    # position_m, rotation: (3,) and (3, 3), where it stands when all joints are at 0, in the frame of the URDF's root
    position_m: Float64Array
    rotation: Float64Array
    rgba: tuple[float, ...]  # colour, 0 to 1, by which a texture is multiplied
    mesh: Path | None  # file, or None for a box
    scale: Float64Array  # (3,) of the mesh, or the box's half sizes in metres


def read_visuals(urdf: Path, scale: float = 1.0) -> list[Visual]:
    """Return what the URDF shows, all lengths multiplied by `scale`."""
    try:
        root = ET.fromstring(urdf.read_text().strip())
        joints = {_child(joint, "child").attrib["link"]: joint for joint in root.iter("joint")}
        # A material is defined where its name first stands with a colour, and only named everywhere else.
        colours = {one.get("name"): one.find("color") for one in root.iter("material") if one.find("color") is not None}
        return [
            _visual(urdf, visual, link.attrib["name"], joints, colours, scale)
            for link in root.iter("link")
            for visual in link.iter("visual")
        ]
    except (OSError, ET.ParseError, KeyError, ValueError) as error:
        remedy = "Install calvin_env again."
        raise ArtifactError(str(urdf), got=str(error), expected="a URDF", remedy=remedy) from error


def _visual(
    urdf: Path,
    visual: ET.Element,
    link: str,
    joints: Mapping[str, ET.Element],
    colours: Mapping[str | None, ET.Element | None],
    scale: float,
) -> Visual:
    links: tuple[str, ...] = (link,)
    place = _origin(visual, scale)
    while (joint := joints.get(links[-1])) is not None:
        position_m, rotation = _origin(joint, scale)
        links = (*links, _child(joint, "parent").attrib["link"])
        place = (position_m + rotation @ place[0], rotation @ place[1])
    material = visual.find("material")
    colour = None if material is None else colours.get(material.get("name"))
    rgba = (1.0, 1.0, 1.0, 1.0) if colour is None else tuple(_floats(colour.attrib["rgba"]))
    shape = _child(visual, "geometry")
    if (box := shape.find("box")) is not None:
        return Visual(links, *place, rgba, None, 0.5 * scale * _floats(box.attrib["size"]))
    mesh = _child(shape, "mesh")
    # "package://" is the URDF's own folder, as PyBullet reads it.
    path = urdf.parent / mesh.attrib["filename"].removeprefix("package://")
    return Visual(links, *place, rgba, path, scale * _floats(mesh.get("scale", "1 1 1")))


def _child(element: ET.Element, tag: str) -> ET.Element:
    child = element.find(tag)
    if child is None:
        raise ValueError(f"a {element.tag} without {tag}")
    return child


def _origin(element: ET.Element, scale: float) -> Frame:
    origin = element.find("origin")
    if origin is None:
        return np.zeros(3), np.eye(3)
    return scale * _floats(origin.get("xyz", "0 0 0")), euler_to_matrix(_floats(origin.get("rpy", "0 0 0")))


def _floats(text: str) -> Float64Array:
    return np.array([float(value) for value in text.split()])
