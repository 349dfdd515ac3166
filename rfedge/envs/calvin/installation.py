"""Finds an installed calvin_env, reads which meshes it renders where, and the meshes: OBJ with library, and binary STL."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

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


_STL_RECORD: Final = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_STL_HEADER_BYTES: Final = 80


@dataclass(frozen=True, slots=True, eq=False)
class TriangleMesh:
    """Triangles of one material."""

    # positions, normals: float64 (V, 3)
    positions: npt.NDArray[np.float64]
    normals: npt.NDArray[np.float64]
    texture_coordinates: npt.NDArray[np.float64]  # float64 (V, 2), v upwards; all 0 for a material without a texture
    faces: npt.NDArray[np.int32]  # int32 (F, 3) into all three
    texture: Path | None  # image file of the material

    @property
    def area(self) -> float:
        first, second, third = (self.positions[self.faces[:, corner]] for corner in range(3))
        return float(0.5 * np.linalg.norm(np.cross(second - first, third - first), axis=1).sum())


def read_mesh(path: Path) -> list[TriangleMesh]:
    """Read an .obj, one mesh per material (`usemtl`), or a binary .stl, one mesh with flat normals."""
    try:
        return _read_stl(path) if path.suffix.lower() == ".stl" else _read_obj(path)
    except (OSError, ValueError, IndexError, struct.error) as error:
        expected, remedy = "an OBJ or binary STL mesh", "Install calvin_env again."
        raise ArtifactError(str(path), got=error, expected=expected, remedy=remedy) from error


def _read_stl(path: Path) -> list[TriangleMesh]:
    content = path.read_bytes()
    (count,) = struct.unpack_from("<I", content, _STL_HEADER_BYTES)
    records = np.frombuffer(content, _STL_RECORD, count, _STL_HEADER_BYTES + 4)
    corners = records["corners"].astype(np.float64)
    return [_indexed(corners, _flat_normals(corners), np.zeros((count, 3, 2)), None)]


def _read_obj(path: Path) -> list[TriangleMesh]:
    vectors: dict[str, list[list[float]]] = {"v": [], "vn": [], "vt": []}
    corners: dict[str, list[list[list[int]]]] = {}  # of every material: triangles of (position, texture, normal)
    textures: dict[str, Path | None] = {}
    material = ""
    for line in path.read_text().splitlines():
        word, *values = line.split() or ("",)
        if word in vectors:
            vectors[word].append([float(value) for value in values])
        elif word == "f":
            polygon = [[int(index or 0) for index in f"{corner}//".split("/")[:3]] for corner in values]
            corners.setdefault(material, []).extend([polygon[0], *polygon[i : i + 2]] for i in range(1, len(polygon) - 1))
        elif word == "usemtl":
            material = line.split(maxsplit=1)[1]
        elif word == "mtllib":
            textures |= _read_textures(path.parent / line.split(maxsplit=1)[1])
    return [_obj_part(vectors, np.array(part), textures.get(name)) for name, part in corners.items()]


def _obj_part(vectors: dict[str, list[list[float]]], corners: npt.NDArray[np.int64], texture: Path | None) -> TriangleMesh:
    """Look up `corners` (F, 3, 3): indices, counted from 1, of position, texture coordinate and normal; 0 is none."""
    positions = np.array(vectors["v"])[corners[..., 0] - 1]
    has_texture, has_normals = bool((corners[..., 1] > 0).all()), bool((corners[..., 2] > 0).all())
    normals = np.array(vectors["vn"])[corners[..., 2] - 1] if has_normals else _flat_normals(positions)
    if texture is None or not has_texture:
        return _indexed(positions, normals, np.zeros((*positions.shape[:2], 2)), None)
    return _indexed(positions, normals, np.array(vectors["vt"])[corners[..., 1] - 1, :2], texture)


def _flat_normals(positions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the unit normals (F, 3, 3) of flat triangles (F, 3, 3)."""
    normals = np.cross(positions[:, 1] - positions[:, 0], positions[:, 2] - positions[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(min=1e-300)
    return np.repeat(normals[:, np.newaxis], 3, axis=1)


def _indexed(
    positions: npt.NDArray[np.float64],
    normals: npt.NDArray[np.float64],
    texture_coordinates: npt.NDArray[np.float64],
    texture: Path | None,
) -> TriangleMesh:
    """Return the mesh of triangles (F, 3, ...) with each different corner stored once."""
    corners = np.concatenate([positions, normals, texture_coordinates], axis=-1).reshape(-1, 8)
    unique, inverse = np.unique(corners, axis=0, return_inverse=True)
    faces = inverse.reshape(-1, 3).astype(np.int32)
    return TriangleMesh(unique[:, :3], unique[:, 3:6], unique[:, 6:], faces, texture)


def _read_textures(path: Path) -> dict[str, Path | None]:
    """Return the image of every material; none for a library that is not there, as some of Franka's are."""
    textures: dict[str, Path | None] = {}
    name = ""
    for line in path.read_text().splitlines() if path.is_file() else ():
        word, _, value = line.strip().partition(" ")
        if word == "newmtl":
            textures[name := value.strip()] = None
        elif word == "map_Kd":
            textures[name] = path.parent / value.strip()
    return textures


def simplify(mesh: TriangleMesh, cell_m: float) -> TriangleMesh:
    """Merge vertices within cubes of side `cell_m` where normals and texture coordinates are alike."""
    cells = _groups(np.floor(mesh.positions / cell_m))
    positions = _means(mesh.positions, cells)[cells]
    alike = np.column_stack([cells, np.round(1.5 * mesh.normals), np.floor(32.0 * mesh.texture_coordinates)])
    corners = _groups(alike)
    faces = cells[mesh.faces]
    kept = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
    _, first = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)  # two shells that have become one
    kept &= np.isin(np.arange(len(faces)), first)
    return TriangleMesh(
        _means(positions, corners),
        _means(mesh.normals, corners),
        _means(mesh.texture_coordinates, corners),
        corners[mesh.faces[kept]].astype(np.int32),
        mesh.texture,
    )


def _groups(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the number of the group of equal rows that each row belongs to."""
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _means(values: npt.NDArray[np.float64], groups: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    sums = np.zeros((groups.max() + 1, values.shape[1]))
    np.add.at(sums, groups, values)
    means: npt.NDArray[np.float64] = sums / np.bincount(groups)[:, np.newaxis]
    return means
