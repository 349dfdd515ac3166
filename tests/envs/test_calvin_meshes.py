"""Reading what calvin_env draws: meshes cut at their materials, URDF visuals, and the folder they are in."""

import sys
from pathlib import Path

import numpy as np
import pytest

from rfedge.envs import make_environment
from rfedge.envs.calvin.installation import FOLDER_VARIABLE, PYTHON_VARIABLE, find_data, read_mesh, read_visuals, simplify
from rfedge.errors import ArtifactError, BackendUnavailableError, ConfigError
from tests.errors import raises

SQUARE_AND_TRIANGLE = """
mtllib part.mtl
v 0 0 0
v 1 0 0
v 1 1 0
v 0 1 0
v 0 0 2
vt 0 0
vt 1 0
vt 1 1
vt 0 1
vn 0 0 1
usemtl wood
f 1/1/1 2/2/1 3/3/1 4/4/1
usemtl white paint
f 1 2 5
"""
MATERIALS = "newmtl wood\nmap_Kd ../textures/wood.png\nnewmtl white paint\nKd 1 1 1\n"


def test_an_obj_is_cut_at_its_materials(tmp_path: Path) -> None:
    (tmp_path / "part.obj").write_text(SQUARE_AND_TRIANGLE)
    (tmp_path / "part.mtl").write_text(MATERIALS)
    wood, paint = read_mesh(tmp_path / "part.obj")
    assert wood.texture == tmp_path / "../textures/wood.png"
    assert wood.faces.shape == (2, 3)  # the square in two triangles
    np.testing.assert_array_equal(np.sort(wood.positions, axis=0), [[0, 0, 0], [0, 0, 0], [1, 1, 0], [1, 1, 0]])
    np.testing.assert_array_equal(wood.texture_coordinates, wood.positions[:, :2])
    np.testing.assert_array_equal(wood.normals, np.tile([0.0, 0.0, 1.0], (4, 1)))
    assert paint.texture is None
    np.testing.assert_array_equal(paint.positions[paint.faces[0]], [[0, 0, 0], [1, 0, 0], [0, 0, 2]])
    np.testing.assert_array_equal(paint.normals, np.tile([0.0, -1.0, 0.0], (3, 1)))  # it has none of its own


def test_a_binary_stl_has_flat_normals(tmp_path: Path) -> None:
    record = np.zeros(2, [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    record["corners"] = [[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 1, 0], [0, 0, 1]]]
    (tmp_path / "part.STL").write_bytes(bytes(80) + np.uint32(2).tobytes() + record.tobytes())
    (mesh,) = read_mesh(tmp_path / "part.STL")
    np.testing.assert_array_equal(mesh.positions[mesh.faces], record["corners"])
    np.testing.assert_array_equal(mesh.normals[mesh.faces[:, 0]], [[0, 0, 1], [1, 0, 0]])


@pytest.mark.parametrize(("name", "content"), [("a.obj", b"v 0 0\nf 1 2 3\n"), ("a.stl", b"short"), ("none.obj", None)])
def test_a_file_that_is_no_mesh_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with raises(ArtifactError, tmp_path / name, expected="an OBJ or binary STL mesh"):
        read_mesh(tmp_path / name)


def test_simplifying_keeps_shape_and_sharp_edges(tmp_path: Path) -> None:
    line = np.linspace(0.0, 1.0, 21)
    corners = [f"v {x} {y} 0" for x in line for y in line]
    quads = [(21 * i + j + 1, 21 * i + j + 22, 21 * i + j + 23, 21 * i + j + 2) for i in range(20) for j in range(20)]
    text = "\n".join([*corners, *(f"f {' '.join(map(str, quad))}" for quad in quads), "v 0 0 1\nv 1 0 1\nv 1 0 0"])
    (tmp_path / "plate.obj").write_text(f"{text}\nf 442 443 444\n")
    (fine,) = read_mesh(tmp_path / "plate.obj")
    coarse = simplify(fine, 0.2)
    assert len(fine.faces) == 801
    assert fine.area == pytest.approx(1.5)
    assert len(coarse.faces) < 100
    assert np.abs(coarse.positions.min(axis=0) - fine.positions.min(axis=0)).max() < 0.1
    assert {tuple(normal) for normal in np.abs(coarse.normals)} == {(0, 0, 1), (0, 1, 0)}  # the two planes do not blend


URDF = """<?xml version="1.0"?>
<robot name="r">
  <link name="root"><visual><geometry><box size="2 4 6"/></geometry><material name="grey"/></visual></link>
  <link name="arm"><visual><origin xyz="1 0 0"/><geometry><mesh filename="package://meshes/arm.obj"/></geometry></visual></link>
  <link name="paint"><visual><geometry><box size="1 1 1"/></geometry>
    <material name="grey"><color rgba="0.5 0.5 0.5 1"/></material></visual></link>
  <joint name="j" type="revolute"><parent link="root"/><child link="arm"/>
    <origin xyz="0 0 3" rpy="0 0 1.5707963267948966"/></joint>
</robot>"""


def test_visuals_stand_where_the_joints_put_them(tmp_path: Path) -> None:
    (tmp_path / "r.urdf").write_text(URDF)
    root, arm, _ = read_visuals(tmp_path / "r.urdf", 0.5)
    assert (root.links, root.mesh, root.rgba) == (("root",), None, (0.5, 0.5, 0.5, 1.0))
    np.testing.assert_array_equal(root.scale, [0.5, 1.0, 1.5])
    assert (arm.links, arm.mesh) == (("arm", "root"), tmp_path / "meshes/arm.obj")
    np.testing.assert_allclose(arm.position_m, [0.0, 0.5, 1.5], atol=1e-15)
    np.testing.assert_array_equal(arm.scale, [0.5, 0.5, 0.5])
    (tmp_path / "r.urdf").write_text(URDF.replace("box size", "ball size"))
    with raises(ArtifactError, "...r.urdf", got="a geometry without mesh", expected="a URDF"):
        read_visuals(tmp_path / "r.urdf")


def test_the_folder_comes_from_the_variable_or_from_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "clone" / "calvin_env"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "clone/data/franka_panda").mkdir(parents=True)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "clone"))
    assert find_data() == tmp_path / "clone/data"
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "clone"))
    assert find_data() == tmp_path / "clone/data"


@pytest.mark.parametrize("variable", [FOLDER_VARIABLE, PYTHON_VARIABLE])
def test_without_calvin_env_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "nothing"))
    with raises(BackendUnavailableError, "calvin_env", got="...nothing...", expected="its meshes for --looks calvin"):
        make_environment("playtable", looks="calvin")
    with make_environment("playtable", looks="calvin", render=False) as environment:  # nobody looks
        assert environment.looks == "calvin"


def test_looks_are_known_and_only_playtable_has_a_choice() -> None:
    with raises(ConfigError, "looks", got="'calvim'", expected="one of playtable, ... (did you mean 'calvin'?)"):
        make_environment("playtable", looks="calvim")  # type: ignore[arg-type]
    with raises(ConfigError, "looks", got="'playtable' for calvin", expected="a choice for playtable"):
        make_environment("calvin", looks="playtable")
