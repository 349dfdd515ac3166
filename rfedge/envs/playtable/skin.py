"""Dresses PlayTable in the meshes and textures of an installed calvin_env; bodies, joints and collisions stay as they are.

CALVIN's files are read where the user has them. Its light is PyBullet's, see `rfedge.envs.playtable.looks`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from rfedge.envs.calvin.installation import TriangleMesh, Visual, read_mesh, read_visuals, simplify
from rfedge.envs.interface import BLOCKS
from rfedge.envs.playtable.layout import BASE_POSITION_M
from rfedge.envs.playtable.looks import SUN
from rfedge.robot.rotations import matrix_to_quaternion, quaternion_to_matrix

_COLLISION_GROUP: Final = 3  # MuJoCo renders groups 0 to 2
_TABLE_SCALE: Final = 0.8  # CALVIN's global_scaling of the table
_BLOCK_RGBA: Final = {"block_red": (1, 0, 0, 1), "block_blue": (0, 0, 1, 1), "block_pink": (1, 0, 1, 1)}
_BOX_SEGMENTS: Final = 6  # along an edge: MuJoCo lights vertices, PyBullet pixels
_PEDESTAL_RADIUS_M: Final = 0.13
_PEDESTAL_BEHIND_M: Final = 0.05  # the arm's first axis
# Franka's meshes have more triangles than the pictures have pixels, and drawing is bound by their number. A pixel is 4 mm
# wide on the arm in the static camera, and 2 mm on the finger tips in the gripper camera.
_MANY_TRIANGLES: Final = 600
_SHELL_AREA_M2: Final = 0.05  # of a part that is a link's smooth shell
_SHELL_CELL_M: Final = 0.010  # pinholes appear from 12 mm on
_ARM_CELL_M: Final = 0.006
_FINGER_CELL_M: Final = 0.002

_SHADOW_MAP_PIXELS: Final = 512  # 3 mm each; PyBullet's are as coarse, and twice as many cost 7 ms more for both cameras


def skin_model(mujoco: Any, mjcf: str, scene: str, data: Path) -> Any:
    """Return PlayTable's compiled model (`mjcf`), dressed from calvin_env's folder `data`."""
    skin = _Skin(mujoco, mjcf)
    table = data / f"calvin_table_{scene}"
    skin.add("table", read_visuals(table / "urdf" / f"calvin_table_{scene}.urdf", _TABLE_SCALE), (0.0, 0.0, 0.0))
    skin.add("robot", read_visuals(data / "franka_panda" / "panda_longer_finger.urdf"), BASE_POSITION_M)
    skin.add("plane", read_visuals(data / "plane" / "plane.urdf"), (0.0, 0.0, 0.0))
    return skin.compile()


class _Skin:
    def __init__(self, mujoco: Any, mjcf: str) -> None:
        self._mujoco = mujoco
        self._spec = mujoco.MjSpec.from_string(mjcf)
        plain = mujoco.MjModel.from_xml_string(mjcf)
        self._rest = mujoco.MjData(plain)
        mujoco.mj_kinematics(plain, self._rest)
        self._bodies = {body.name: body for body in self._spec.bodies}
        self._textures: dict[Path, str] = {}
        self._meshes: dict[tuple[Path | None, tuple[float, ...]], list[tuple[str, str]]] = {}
        for geom in list(self._spec.geoms):
            if geom.contype or geom.conaffinity:
                geom.group = _COLLISION_GROUP
            else:
                self._spec.delete(geom)
        for block in BLOCKS:
            body = self._bodies[f"{block}/base_link"]
            (shape,) = body.geoms
            mesh = self._add_mesh(block, _rounded_box(), shape.size)
            self._add_mesh_geom(body, mesh, _BLOCK_RGBA[block])
        x_m, y_m, height_m = BASE_POSITION_M
        mesh = self._add_mesh("pedestal", _rounded_cylinder(), (_PEDESTAL_RADIUS_M, _PEDESTAL_RADIUS_M, 0.5 * height_m))
        place = (x_m - _PEDESTAL_BEHIND_M, y_m, 0.5 * height_m)
        self._add_mesh_geom(self._spec.worldbody, mesh, np.ones(4), pos=place)
        self._spec.visual.quality.shadowsize = _SHADOW_MAP_PIXELS
        sun = self._spec.light("sun")
        sun.pos = 2.0 * np.array(SUN) / np.linalg.norm(SUN)  # from where its shadow map is rendered

    def _add_mesh_geom(self, body: Any, mesh: str, rgba: Any, **other: Any) -> None:
        shape = {"type": self._mujoco.mjtGeom.mjGEOM_MESH, "meshname": mesh, "rgba": rgba}
        body.add_geom(contype=0, conaffinity=0, mass=0, group=0, **shape, **other)

    def add(self, owner: str, visuals: list[Visual], root_m: tuple[float, float, float]) -> None:
        """Hang every visual of one URDF on the body that carries its link; the URDF's root stands at `root_m`."""
        for visual in visuals:
            links = ("base_link" if link == "planeLink" else link for link in visual.links)
            name = next(name for link in links if (name := f"{owner}/{link}") in self._bodies)
            body = self._rest.body(name)
            frame = quaternion_to_matrix(np.roll(body.xquat, -1))
            place = {
                "pos": frame.T @ (visual.position_m + root_m - body.xpos),
                "quat": np.roll(matrix_to_quaternion(frame.T @ visual.rotation), 1),
            }
            for mesh, material in self._load(visual.mesh, visual.scale):
                self._add_mesh_geom(self._bodies[name], mesh, visual.rgba, material=material, **place)

    def _load(self, path: Path | None, scale: Any) -> list[tuple[str, str]]:
        """Return (mesh, material) of every part of a file, or of a box; "" for one without a texture."""
        key = path and path.resolve(), tuple(scale)
        if key not in self._meshes:
            number = len(self._meshes)
            parts = [_rounded_box()] if path is None else _read_simplified(path)
            self._meshes[key] = [
                (self._add_mesh(f"skin{number}.{index}", part, scale), self._material(part.texture))
                for index, part in enumerate(parts)
            ]
        return self._meshes[key]

    def _add_mesh(self, name: str, part: TriangleMesh, scale: Any) -> str:
        mesh = self._spec.add_mesh(
            name=name,
            inertia=self._mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,
            uservert=(part.positions * scale).ravel(),
            usernormal=part.normals.ravel(),
            userface=part.faces.ravel(),  # of normals and texture coordinates too: MuJoCo 4.0 reads no other indices
        )
        if part.texture is not None:
            # MuJoCo counts v from the image's upper edge.
            mesh.usertexcoord = (part.texture_coordinates * (1.0, -1.0) + (0.0, 1.0)).ravel()
        return name

    def _material(self, texture: Path | None) -> str:
        if texture is None:
            return ""
        path = texture.resolve()
        if path not in self._textures:
            name = f"skin{len(self._textures)}"
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            height, width, channels = pixels.shape
            kind = self._mujoco.mjtTexture.mjTEXTURE_2D
            image_2d = self._spec.add_texture(name=name, type=kind, width=width, height=height, nchannel=channels)
            image_2d.data = pixels.tobytes()
            material = self._spec.add_material(name=name)
            material.textures[self._mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
            material.specular = 0.0
            self._textures[path] = name
        return self._textures[path]

    def compile(self) -> Any:
        """Return the model."""
        return self._spec.compile()


def _rounded_box() -> TriangleMesh:
    """Return the cube of half side 1 whose normals run smoothly from corner to corner, as those of PyBullet's boxes do."""
    line = np.linspace(-1.0, 1.0, _BOX_SEGMENTS + 1)
    u, v = (grid.ravel() for grid in np.meshgrid(line, line, indexing="ij"))
    first = np.arange(len(u)).reshape(len(line), len(line))[:-1, :-1].ravel()
    right, up = first + len(line), first + 1
    square = np.concatenate([np.stack([first, right, right + 1], 1), np.stack([first, right + 1, up], 1)])
    sides: list[npt.NDArray[np.float64]] = []
    faces: list[npt.NDArray[np.int64]] = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            # (u, v, w) turns to (w, u, v) and on, so that the side's outer face keeps its sense.
            sides.append(np.roll(np.stack([u, v, np.full_like(u, sign)], 1), axis, axis=1))
            faces.append((square if sign > 0 else square[:, ::-1]) + len(u) * len(faces))
    positions = np.concatenate(sides)
    normals = positions / np.linalg.norm(positions, axis=1, keepdims=True)
    return TriangleMesh(positions, normals, np.zeros((len(positions), 2)), np.concatenate(faces).astype(np.int32), None)


def _rounded_cylinder() -> TriangleMesh:
    """Return the same of the cylinder of radius 1 and half height 1."""
    box = _rounded_box()
    positions = box.positions.copy()
    positions[:, :2] *= np.sqrt(1.0 - 0.5 * positions[:, 1::-1] ** 2)  # a square to a disc
    normals = positions / np.linalg.norm(positions, axis=1, keepdims=True)
    return dataclasses.replace(box, positions=positions, normals=normals)


def _read_simplified(path: Path) -> list[TriangleMesh]:
    def cell_m(part: TriangleMesh) -> float:
        if path.suffix == ".STL":
            return _FINGER_CELL_M
        return _SHELL_CELL_M if part.area > _SHELL_AREA_M2 else _ARM_CELL_M

    parts = read_mesh(path)
    return [simplify(part, cell_m(part)) if len(part.faces) > _MANY_TRIANGLES else part for part in parts]
