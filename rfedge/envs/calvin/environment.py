"""CALVIN's own simulator as an `Environment`, what its published results were measured in, and the process it runs in."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, cast, get_args

import numpy as np

from rfedge.envs.calvin import server
from rfedge.envs.calvin.installation import PYTHON_VARIABLE
from rfedge.envs.calvin.server import ProtocolError, encode, receive
from rfedge.envs.interface import (
    CAMERAS,
    ROBOT_STATE_SIZE,
    SCENE_STATE_SIZE,
    BlockState,
    Camera,
    Contact,
    Environment,
    Float64Array,
    SceneInfo,
    check_state,
    check_step,
)
from rfedge.envs.looks import Renderer
from rfedge.errors import BackendUnavailableError, ConfigError, one_of
from rfedge.messages import Observation, UInt8Array

if TYPE_CHECKING:
    from rfedge.envs.calvin.server import Arrays, Header

_SCENES: Final = ("A", "B", "C", "D")
_RENDERERS: Final = get_args(Renderer)
_MAX_SEED: Final = 2**32 - 1
_LIGHTS: Final = slice(4, 6)  # within scene_obs
_DEVICE_LINE: Final = re.compile(r"^GL_RENDERER=(.+)$", re.MULTILINE)


class CalvinEnvironment(Environment):
    """One calvin_env environment in a process of its own; see `rfedge.envs.interface.Environment`.

    A fresh environment with the same scene, seed and calls gives bit-identical states. A state that is restored again
    in the same environment does not: PyBullet keeps contacts from before, and repeating the same actions has been seen to
    end up to 3e-3 away. So nothing is restored before the first call: from there on, the same calls and actions give the
    states of CALVIN's own evaluation. `restore` does what calvin_env's `reset` does, with its habits: a button restored as
    pressed toggles its light in the first step, and a switch restored as up turns the bulb on in the first step.
    """

    def __init__(
        self,
        scene: str = "D",
        *,
        seed: int = 0,
        render: bool = True,
        task: str = "",
        python: str | os.PathLike[str] | None = None,
        renderer: Renderer = "egl",
        start_timeout_s: float = 120.0,
        call_timeout_s: float = 60.0,
    ) -> None:
        """Start the simulator and build the scene, with arguments as of `PlayTable`."""
        for name, value, known in (("scene", scene, _SCENES), ("renderer", renderer, _RENDERERS)):
            one_of(known, value, name, remedy=f"Choose a known {name}.")
        if not 0 <= seed <= _MAX_SEED:
            raise ConfigError("seed", got=seed, expected=f"0 to {_MAX_SEED}", remedy="Choose another seed.")
        self.task = task
        self.scene, self.looks = scene, "calvin"
        self._call_timeout_s = call_timeout_s
        self._has_cameras = render
        interpreter = os.fspath(python or os.environ.get(PYTHON_VARIABLE) or sys.executable)
        self._process = SimulatorProcess([interpreter, str(Path(server.__file__).resolve())])
        request = {"method": "open", "scene": scene, "seed": int(seed), "renderer": renderer if render else "none"}
        facts, self._states = self._process.request(request, timeout_s=start_timeout_s)
        self.block_order = cast("tuple[str, str, str]", tuple(facts["block_order"]))
        self._versions = {str(name): str(version) for name, version in facts["versions"].items()}
        # With the device, for instance "egl (llvmpipe)".
        self.renderer = _renderer_name(renderer, self._process.log()) if render else "none"

    @property
    def versions(self) -> Mapping[str, str]:
        """Commit of calvin_env and versions of its interpreter and libraries."""
        return dict(self._versions)

    def restore(self, robot_obs: Float64Array | None = None, scene_obs: Float64Array | None = None) -> None:
        arrays: Arrays = {}
        if robot_obs is not None:
            arrays["robot_obs"] = check_state("robot_obs", robot_obs, ROBOT_STATE_SIZE)
        if scene_obs is not None:
            scene_obs = check_state("scene_obs", scene_obs, SCENE_STATE_SIZE)
            scene_obs[_LIGHTS] = scene_obs[_LIGHTS] > 0.5  # calvin_env takes exactly 0 and 1
            arrays["scene_obs"] = scene_obs
        _, self._states = self._call("restore", arrays)

    def advance(self, action: Float64Array) -> None:
        _, self._states = self._call("advance", {"action": check_step(action)})

    def observe(self) -> Observation:
        images = self._images(*CAMERAS)
        return Observation(static=images["static"], gripper=images["gripper"], state=self.robot_state(), task=self.task)

    def draw_camera(self, camera: Camera) -> UInt8Array:
        return self._images(camera)[camera]

    def _images(self, *cameras: Camera) -> Arrays:
        if not self._has_cameras:
            remedy = "Make the environment with render=True, or use restore and advance."
            raise ConfigError("observe", got="render=False", expected="cameras", remedy=remedy)
        return self._call("images", cameras=cameras)[1]

    def robot_state(self) -> Float64Array:
        return self._states["robot_obs"].copy()

    def scene_state(self) -> Float64Array:
        return self._states["scene_obs"].copy()

    def info(self) -> SceneInfo:
        reply, _ = self._call("info")
        return parse_info(reply["info"])

    def _call(self, method: str, arrays: Arrays | None = None, **fields: Any) -> tuple[Header, Arrays]:
        return self._process.request({"method": method, **fields}, arrays, timeout_s=self._call_timeout_s)

    def close(self) -> None:
        self._process.close()


def parse_info(fields: Mapping[str, Any]) -> SceneInfo:
    blocks = {}
    for name, block in fields["blocks"].items():
        arrays: dict[str, Any] = {part: np.array(value) for part, value in block.items() if part != "contacts"}
        blocks[name] = BlockState(**arrays, contacts=_contacts(block["contacts"]))
    return SceneInfo(**{**fields, "blocks": blocks, "robot_contacts": _contacts(fields["robot_contacts"])})


def _contacts(pairs: list[list[str]]) -> frozenset[Contact]:
    return frozenset((body, link) for body, link in pairs)


def _renderer_name(renderer: str, log: str) -> str:
    """Add the device that the EGL plugin prints, without its driver's details."""
    found = _DEVICE_LINE.search(log)
    if renderer != "egl" or found is None:
        return renderer
    return f"egl ({re.split(r' [(]|/', found[1])[0].strip()})"


_SUBJECT: Final = "calvin simulator"
_REMEDY: Final = "See docs/how-to/install_calvin.md."
_GRACE_S: Final = 2.0  # between the end of its input and its being killed
_LOG_BYTES: Final = 4096  # of the log's end that are searched for a reason


class SimulatorProcess:
    """One child process, asked one thing at a time over a socket; any failure ends it, because its state is unknown."""

    def __init__(self, command: Sequence[str]) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._connection, theirs = Pipe()
        try:
            # A session of its own: Ctrl-C reaches this process alone, which then closes the simulator.
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=self._log, stderr=self._log, start_new_session=True
            )
        except OSError as error:
            self._connection.close()
            self._log.close()
            expected = "an interpreter that has calvin_env"
            remedy = f"Pass python= or set RFEDGE_CALVIN_PYTHON. {_REMEDY}"
            got = f"{command[0]!r} ({error.strerror or error})"
            raise BackendUnavailableError(_SUBJECT, got=got, expected=expected, remedy=remedy) from error
        finally:
            theirs.close()
        # The child also ends when this process does: its input then ends.
        self._finalizer = weakref.finalize(self, _stop, self._process, self._connection, self._log, os.getpid())

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, header: Header, arrays: Arrays | None = None, *, timeout_s: float) -> tuple[Header, Arrays]:
        """Send one request and return the reply's header and arrays."""
        method = header.get("method")
        if not self._finalizer.alive:
            raise self._failure("a closed one", "an open environment", "Make a new one.")
        try:
            _limit_waiting(self._connection, timeout_s)
            for part in encode(header, arrays or {}):
                self._connection.send_bytes(part)
            reply, reply_arrays = receive(self._connection)
        except BlockingIOError as error:  # nothing came for so long
            self._process.kill()  # it would not see the end of its input
            self.close()
            raise self._failure(f"no answer to {method!r}", f"one within {timeout_s:g} s") from error
        except (EOFError, OSError) as error:
            raise self._failure(f"{self._end(error)} during {method!r}", "a reply") from error
        except ProtocolError as error:
            self.close()
            raise self._failure(str(error), f"a reply to {method!r}") from error
        except BaseException:
            self.close()  # Ctrl-C leaves a reply on its way, which the next request would take for its own
            raise
        if not reply.get("ok"):
            self.close()
            raise self._failure(str(reply.get("error")), *_advice(str(reply.get("kind")), str(method)))
        return reply, reply_arrays

    @staticmethod
    def _failure(got: str, expected: str, remedy: str = _REMEDY) -> BackendUnavailableError:
        return BackendUnavailableError(_SUBJECT, got=got, expected=expected, remedy=remedy)

    def log(self, *, last_bytes: int | None = None) -> str:
        size = os.fstat(self._log.fileno()).st_size
        start = 0 if last_bytes is None else max(0, size - last_bytes)
        return os.pread(self._log.fileno(), size - start, start).decode(errors="replace")

    def _end(self, error: Exception) -> str:
        """End the process and return how it ended, with its last line."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.2)  # one that has closed its output is about to end by itself
        status = self._process.poll()
        lines = [line.strip() for line in self.log(last_bytes=_LOG_BYTES).splitlines() if line.strip()]
        self.close()
        how = f"a broken connection{f' ({error})' if str(error) else ''}"
        if status is not None:
            how = f"its end with {f'status {status}' if status >= 0 else signal.Signals(-status).name}"
        return f"{how} ({lines[-1][:300]})" if lines else how

    def close(self) -> None:
        self._finalizer()


def _limit_waiting(connection: Connection, timeout_s: float) -> None:
    """Let a read that waits longer raise BlockingIOError, whoever else holds the other end; a stopped process waits anew."""
    timeval = struct.pack("ll", *divmod(max(1, round(1e6 * timeout_s)), 1_000_000))
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)


def _advice(kind: str, method: str) -> tuple[str, str]:
    """Return what was expected and what to do, for an error that the simulator's side reported."""
    if kind in ("ModuleNotFoundError", "ImportError"):
        remedy = (
            "Install a git clone of github.com/mees/calvin_env into an interpreter of its own and set RFEDGE_CALVIN_PYTHON "
            f"(or python=) to it. {_REMEDY}"
        )
        return "an interpreter that has calvin_env", remedy
    if kind in ("InvalidGitRepositoryError", "NoSuchPathError"):
        return "calvin_env within its git clone, which it asks for its commit", f"Clone it with git. {_REMEDY}"
    if kind == "SystemExit":
        return (
            "an EGL device or Mesa's software renderer",
            f'Install libegl1 and libgl1-mesa-dri, or use renderer="tiny". {_REMEDY}',
        )
    return f"{method!r} to succeed", _REMEDY


def _stop(process: subprocess.Popen[bytes], connection: Connection, log: IO[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a forked copy of the owner does not own the simulator
        return
    connection.close()
    try:
        process.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    log.close()
