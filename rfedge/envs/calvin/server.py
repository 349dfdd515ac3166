"""Runs CALVIN's simulator in a process of its own and answers requests on the connection that is its standard input.

Started by path, under an interpreter that has calvin_env: it needs nothing else but numpy, and Python 3.8 or later.
The other end is `rfedge.envs.calvin.environment`. A message is a JSON object and then the bytes of each array that its
"arrays" lists as [name, dtype, shape]. A request names a `method` and its reply has `ok`; with `ok` false it has `error`
and `kind`. The end of the connection ends the process.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import os
import platform
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # Python 3.8 cannot evaluate these
    from collections.abc import Sequence

    Arrays = dict[str, np.ndarray[Any, Any]]
    Header = dict[str, Any]

MAX_BYTES = 1 << 20  # both images are 141 168 bytes
DTYPES = ("float64", "uint8")

ROBOT = "robot"
BASE_LINK = "base_link"  # of every body; PyBullet numbers it -1


class ProtocolError(Exception):
    """What came is not a message of this protocol."""


def encode(header: Header, arrays: Arrays) -> list[bytes]:
    """Return the parts of one message."""
    listed = [[name, array.dtype.name, array.shape] for name, array in arrays.items()]
    head = json.dumps({**header, "arrays": listed}, allow_nan=False).encode()
    return [head, *(array.tobytes() for array in arrays.values())]


def receive(connection: Connection) -> tuple[Header, Arrays]:
    """Return header and arrays of the next message, as copies; raises EOFError or OSError where none comes."""
    try:
        header = json.loads(connection.recv_bytes(MAX_BYTES))
        arrays: Arrays = {}
        for name, dtype, shape in header.pop("arrays"):
            if dtype not in DTYPES:
                raise ProtocolError(f"array {name!r} of dtype {dtype!r}")
            arrays[name] = np.frombuffer(connection.recv_bytes(MAX_BYTES), dtype).reshape(shape).copy()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"an unreadable message ({type(error).__name__}: {error})") from error
    return header, arrays


# --- the simulator ----------------------------------------------------------------------------------------------------
class Simulator:
    """One calvin_env environment, driven through its parts so that physics needs no rendering."""

    def __init__(self, scene: str, seed: int, renderer: str) -> None:
        """Build it from calvin_env's own configuration; `renderer` is "egl", "tiny" or "none"."""
        calvin_env = importlib.import_module("calvin_env")
        if calvin_env.__file__ is None:
            raise ImportError("calvin_env is an empty namespace: a folder of that name hides the package")
        self._root = Path(calvin_env.__file__).resolve().parents[1]
        hydra = importlib.import_module("hydra")
        instantiate = importlib.import_module("hydra.utils").instantiate
        with hydra.initialize_config_dir(config_dir=str(self._root / "conf")):
            config = hydra.compose(
                "config_data_collection",
                overrides=[
                    f"scene=calvin_scene_{scene}",
                    f"cameras={'no_cameras' if renderer == 'none' else 'static_and_gripper'}",
                    "use_vr=false",
                    f"env.seed={seed}",
                    f"env.use_egl={str(renderer == 'egl').lower()}",
                ],
            )
        # calvin_env drops PyBullet's segmentation mask, whose pass costs a fifth of a picture, and has no option for it.
        # Both images stay bit for bit the same.
        pybullet: Any = importlib.import_module("pybullet")
        pybullet.getCameraImage = functools.partial(pybullet.getCameraImage, flags=pybullet.ER_NO_SEGMENTATION_MASK)
        self._env = instantiate(config.env, show_gui=False, use_vr=False, use_scene_info=True)
        self._p = self._env.p
        self._cid = self._env.cid
        self._links = self._link_names()
        if renderer != "none":
            self.images(
                [camera.name for camera in self._env.cameras]
            )  # the first picture of an EGL context is lit differently from all later ones

    def _link_names(self) -> dict[tuple[int, int], tuple[str, str]]:
        """Map (body, link) of PyBullet to names."""
        scene = self._env.scene
        named = {entry.uid: entry.name for entry in (*scene.fixed_objects, *scene.movable_objects)}
        named[self._env.robot.robot_uid] = ROBOT
        links = {}
        for index in range(self._p.getNumBodies(physicsClientId=self._cid)):
            body = self._p.getBodyUniqueId(index, physicsClientId=self._cid)
            _, body_name = self._p.getBodyInfo(body, physicsClientId=self._cid)
            name = named.get(body, body_name.decode())
            links[body, -1] = (name, BASE_LINK)
            for link in range(self._p.getNumJoints(body, physicsClientId=self._cid)):
                info = self._p.getJointInfo(body, link, physicsClientId=self._cid)
                links[body, link] = (name, info[12].decode())
        return links

    def facts(self) -> Header:
        """Return what never changes: order of the blocks, control rate, versions."""
        git = importlib.import_module("git")  # calvin_env itself has just asked for its commit
        return {
            "block_order": [block.name for block in self._env.scene.movable_objects],
            "control_hz": int(self._env.control_freq),
            "versions": {
                "calvin_env": str(git.Repo(self._root).head.object.hexsha),
                "calvin_env python": platform.python_version(),
                "calvin_env numpy": np.__version__,
                "pybullet": self._pybullet_version(),
            },
        }

    def _pybullet_version(self) -> str:
        try:
            metadata = importlib.import_module("importlib.metadata")
            return str(metadata.version("pybullet"))
        except ImportError:  # importlib.metadata.PackageNotFoundError is one: a build without metadata
            return str(self._p.getAPIVersion())

    def restore(self, arrays: Arrays) -> None:
        """Set the state as calvin_env's `reset` does, without its rendering."""
        robot_obs = arrays.get("robot_obs")
        self._env.scene.reset(arrays.get("scene_obs"))
        self._env.robot.reset(robot_obs)
        # calvin_env leaves the last action of the episode before; it is read by observations alone.
        self._env.robot.gripper_action = 1 if robot_obs is None or robot_obs[14] > 0 else -1
        self._p.stepSimulation(physicsClientId=self._cid)

    def advance(self, arrays: Arrays) -> None:
        """Run one control step as calvin_env's `step` does, without its rendering."""
        self._env.robot.apply_action(arrays["action"])
        for _ in range(self._env.action_repeat):
            self._p.stepSimulation(physicsClientId=self._cid)
        self._env.scene.step()

    def states(self) -> Arrays:
        """Return robot_obs (15,) and scene_obs (24,)."""
        states = self._env.get_state_obs()
        return {name: np.asarray(states[name], dtype=np.float64) for name in ("robot_obs", "scene_obs")}

    def images(self, names: Sequence[str]) -> Arrays:
        """Render the named cameras, uint8 RGB."""
        cameras = {camera.name: camera for camera in self._env.cameras}
        return {name: np.asarray(cameras[name].render()[0], dtype=np.uint8) for name in names}

    def info(self) -> Header:
        """Return calvin_env's info with names in place of PyBullet's numbers."""
        info = self._env.get_info()
        scene = info["scene_info"]
        blocks = {}
        for name, block in scene["movable_objects"].items():
            blocks[name] = {
                "position_m": list(block["current_pos"]),
                "orientation_xyzw": list(block["current_orn"]),
                "linear_velocity_m_s": list(block["current_lin_vel"]),
                "angular_velocity_rad_s": list(block["current_ang_vel"]),
                "contacts": self._contacts(block["contacts"], name),
            }
        return {
            "doors": {name: door["current_state"] for name, door in scene["doors"].items()},
            "buttons": {name: button["joint_state"] for name, button in scene["buttons"].items()},
            "switches": {name: switch["joint_state"] for name, switch in scene["switches"].items()},
            "lights": {name: bool(light["logical_state"]) for name, light in scene["lights"].items()},
            "blocks": blocks,
            "robot_contacts": self._contacts(info["robot_info"]["contacts"], ROBOT),
        }

    def _contacts(self, points: Any, own_name: str) -> list[tuple[str, str]]:
        touched = {self._links[point[2], point[4]] for point in points}  # (bodyB, linkB) of every contact point
        return sorted(contact for contact in touched if contact[0] != own_name)


# --- requests ---------------------------------------------------------------------------------------------------------
def answer(simulator: Any, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    method = header["method"]
    if method in ("restore", "advance"):
        getattr(simulator, method)(arrays)
        return {}, simulator.states()
    if method == "images":
        return {}, simulator.images(header["cameras"])
    if method == "info":
        return {"info": simulator.info()}, {}
    raise ProtocolError(f"an unknown method {method!r}")


def main() -> None:
    # Python puts this file's folder first on the path, where its neighbours could hide other modules.
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != here]
    connection, simulator = Connection(os.dup(0)), None
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    while True:
        try:
            header, arrays = receive(connection)
        except EOFError:
            return
        try:
            if header.get("method") == "open":
                simulator = Simulator(header["scene"], header["seed"], header["renderer"])
                ctypes.CDLL(None).fflush(None)  # what C libraries have printed: the EGL plugin names its device there
                fields, reply_arrays = simulator.facts(), simulator.states()
            else:
                fields, reply_arrays = answer(simulator, header, arrays)
            reply = encode({"ok": True, **fields}, reply_arrays)
        except (Exception, SystemExit) as error:  # calvin_env leaves by sys.exit when its EGL plugin does not load
            text = " ".join(f"{type(error).__name__}: {error}".split())
            reply = encode({"ok": False, "kind": type(error).__name__, "error": text[:2000]}, {})
        for part in reply:
            connection.send_bytes(part)


if __name__ == "__main__":
    main()
