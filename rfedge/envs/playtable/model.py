"""Compiles the MuJoCo model of a scene; a dressed one is kept in the user's cache."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any, Final

from rfedge.envs.calvin import installation, meshes
from rfedge.envs.looks import Looks
from rfedge.envs.playtable import skin
from rfedge.envs.playtable.layout import TableLayout
from rfedge.envs.playtable.looks import dress, plain_look
from rfedge.envs.playtable.scene import build_mjcf
from rfedge.io.atomic import atomic_file
from rfedge.io.cache import cache_folder

logger = logging.getLogger(__name__)

_SOURCES: Final = (".mtl", ".obj", ".png", ".stl", ".urdf")
_CODE: Final = tuple(Path(module.__file__ or "") for module in (installation, meshes, skin))


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
