"""Loads MuJoCo with a renderer that works without a screen, and renders the two cameras."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, Final

import numpy as np

from rfedge.envs.interface import Camera
from rfedge.errors import BackendUnavailableError
from rfedge.messages import GRIPPER_IMAGE_SHAPE, STATIC_IMAGE_SHAPE, UInt8Array

_GL_REMEDY: Final = (
    "On Debian and Ubuntu: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6 and MUJOCO_GL=osmesa; "
    "MUJOCO_GL=disable with render=False runs physics alone. "
    "The variable counts only if it is set before the program first imports mujoco."
)
_MAX_GEOMS: Final = 200


def load_mujoco() -> Any:
    """Import MuJoCo, choosing EGL where there is no screen and the user chose nothing."""
    # MuJoCo reads this variable once, while it is imported: set later, it would only hide the cause of an error.
    is_free = "MUJOCO_GL" not in os.environ and "mujoco" not in sys.modules
    if is_free and sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        os.environ["MUJOCO_GL"] = "egl"
    try:
        return importlib.import_module("mujoco")
    except ModuleNotFoundError as error:
        remedy = "Install it with: pip install mujoco."
        raise BackendUnavailableError("mujoco", got=error, expected="MuJoCo 3.3.7 or later", remedy=remedy) from error
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        # A missing OpenGL library surfaces as any of these, depending on the back end.
        raise _no_renderer(error) from error


def _no_renderer(error: Exception) -> BackendUnavailableError:
    chosen = os.environ.get("MUJOCO_GL", "the platform default")
    problem = " ".join(str(error).split()) or type(error).__name__
    return BackendUnavailableError(
        "renderer", got=f"{problem} (MUJOCO_GL is {chosen})", expected="an OpenGL context", remedy=_GL_REMEDY
    )


class Cameras:
    """Renders the static and the gripper camera in one OpenGL context, with shadows and without reflections."""

    def __init__(self, model: Any) -> None:
        """Open the context; raises BackendUnavailableError where none can be made."""
        self._mujoco = mujoco = load_mujoco()
        self._model = model
        self._context: Any = None
        self._gl: Any = None
        try:
            self._gl = mujoco.GLContext(*STATIC_IMAGE_SHAPE[:2])
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        except Exception as error:  # every back end has its own exception type
            self.close()
            raise _no_renderer(error) from error
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = True
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._options = mujoco.MjvOption()
        self._views: dict[Camera, tuple[Any, Any, tuple[int, ...]]] = {}
        shapes: dict[Camera, tuple[int, ...]] = {"static": STATIC_IMAGE_SHAPE, "gripper": GRIPPER_IMAGE_SHAPE}
        for name, shape in shapes.items():
            view = mujoco.MjvCamera()
            view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera(name).id
            self._views[name] = view, mujoco.MjrRect(0, 0, shape[1], shape[0]), shape

    @property
    def backend(self) -> str:
        """Back end: "egl", "osmesa" or "glfw"."""
        return os.environ.get("MUJOCO_GL") or "glfw"

    def upload_textures(self) -> None:
        self._gl.make_current()
        for texture in range(self._model.ntex):
            self._mujoco.mjr_uploadTexture(self._model, self._context, texture)

    def render(self, camera: Camera, data: Any) -> UInt8Array:
        """Return the image of one camera, (200, 200, 3) or (84, 84, 3), of the present state."""
        view, area, shape = self._views[camera]
        self._gl.make_current()
        everything = self._mujoco.mjtCatBit.mjCAT_ALL
        self._mujoco.mjv_updateScene(self._model, data, self._options, None, view, everything, self._scene)
        self._mujoco.mjr_render(area, self._scene, self._context)
        image = np.empty(shape, dtype=np.uint8)
        self._mujoco.mjr_readPixels(image, None, area, self._context)
        return np.ascontiguousarray(image[::-1])  # OpenGL's first row is the lowest

    def close(self) -> None:
        if self._context is not None:
            self._context.free()
        if self._gl is not None:
            self._gl.free()
        self._context = self._gl = None
