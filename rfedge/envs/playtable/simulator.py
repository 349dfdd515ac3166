"""Loads MuJoCo with a renderer that works without a screen, and draws the two cameras."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, Final

from rfedge.envs.interface import Camera
from rfedge.errors import BackendUnavailableError, explain
from rfedge.messages import GRIPPER_IMAGE_SHAPE, STATIC_IMAGE_SHAPE, UInt8Array

__all__ = ["Cameras", "load_mujoco"]

_GL_REMEDY: Final = (
    "On Debian and Ubuntu: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6 and MUJOCO_GL=osmesa; "
    "MUJOCO_GL=disable with render=False runs physics alone. "
    "The variable counts only if it is set before the program first imports mujoco."
)
_MAX_GEOMS: Final = 200


def load_mujoco() -> Any:
    """Import MuJoCo, choosing EGL where there is no screen and the user chose nothing.

    Raises:
        BackendUnavailableError: MuJoCo is not installed, or its OpenGL library is missing.
    """
    # MuJoCo reads this variable once, while it is imported: set later, it would only hide the cause of an error.
    is_free = "MUJOCO_GL" not in os.environ and "mujoco" not in sys.modules
    if is_free and sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        os.environ["MUJOCO_GL"] = "egl"
    try:
        return importlib.import_module("mujoco")
    except ModuleNotFoundError as error:
        remedy = "Install it with: pip install mujoco."
        text = explain("mujoco", got=str(error), expected="MuJoCo 3.3.7 or later", remedy=remedy)
        raise BackendUnavailableError(text) from error
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        # A missing OpenGL library surfaces as any of these, depending on the back end.
        raise _no_renderer(error) from error


def _no_renderer(error: Exception) -> BackendUnavailableError:
    chosen = os.environ.get("MUJOCO_GL", "the platform default")
    problem = " ".join(str(error).split()) or type(error).__name__
    return BackendUnavailableError(
        explain("renderer", got=f"{problem} (MUJOCO_GL is {chosen})", expected="an OpenGL context", remedy=_GL_REMEDY)
    )


class Cameras:
    """Draws the static and the gripper camera, with shadows and without reflections."""

    def __init__(self, model: Any) -> None:
        """Open one OpenGL context a camera.

        Raises:
            BackendUnavailableError: no context can be made.
        """
        mujoco = load_mujoco()
        self._renderers: dict[str, Any] = {}
        try:
            for name, (height, width, _) in (("static", STATIC_IMAGE_SHAPE), ("gripper", GRIPPER_IMAGE_SHAPE)):
                renderer = mujoco.Renderer(model, height=height, width=width, max_geom=_MAX_GEOMS)
                renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = True
                renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
                self._renderers[name] = renderer
        except Exception as error:  # every back end has its own exception type
            self.close()
            raise _no_renderer(error) from error

    @property
    def backend(self) -> str:
        """What draws: "egl", "osmesa" or "glfw"."""
        return os.environ.get("MUJOCO_GL") or "glfw"

    def draw(self, camera: Camera, data: Any) -> UInt8Array:
        """Return the image of one camera, (200, 200, 3) or (84, 84, 3), of the present state."""
        renderer = self._renderers[camera]
        renderer.update_scene(data, camera=camera)
        image: UInt8Array = renderer.render()
        return image

    def close(self) -> None:
        """Free the OpenGL contexts."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers = {}
