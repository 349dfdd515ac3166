"""Reads the meshes of an installed calvin_env: OBJ with its material library, and binary STL."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from rfedge.errors import ArtifactError

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
