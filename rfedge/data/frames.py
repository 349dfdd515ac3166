"""One CALVIN frame: which arrays it holds, how it is written and how a damaged one differs from a good one.

    rgb_static   uint8 (200, 200, 3)     rgb_gripper  uint8 (84, 84, 3)
    robot_obs    float (15,)             scene_obs    float (24,)
    actions      float (7,)              absolute tcp pose (m, rad) of the next frame, gripper -1 or 1 as it was sent
    rel_actions  float (7,)              what the policy learns, see `rfedge.messages`

Where a frame was recorded under noise or while a policy drove, the two differ: `actions` tells what happened and
`rel_actions` what the expert would have done. Statistics, windows and training use `rel_actions` alone.

CALVIN's own files hold float64 where its README says float32, and depth and tactile arrays besides; both are accepted.
"""

from __future__ import annotations

import ast
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from rfedge import messages
from rfedge.errors import DatasetError
from rfedge.messages import POSE_SIZE, POSITION_SCALE_M, ROTATION_SCALE_RAD
from rfedge.robot.rotations import wrap_angle

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]

SCENE_SIZE: Final = 24
FRAME_SHAPES: Final[Mapping[str, tuple[int, ...]]] = {
    "rgb_static": messages.STATIC_IMAGE_SHAPE,
    "rgb_gripper": messages.GRIPPER_IMAGE_SHAPE,
    "robot_obs": (messages.STATE_SIZE,),
    "scene_obs": (SCENE_SIZE,),
    "actions": (messages.ACTION_SIZE,),
    "rel_actions": (messages.ACTION_SIZE,),
}
FRAME_KEYS: Final = tuple(FRAME_SHAPES)

_PREFIX: Final = "episode_"
_SUFFIX: Final = ".npz"
# rel_actions are clipped to [-1, 1] in float64 by whoever wrote them; a float32 copy may overshoot by one ulp.
_POSE_LIMIT: Final = 1.0 + 1e-6
# Measured on rendered frames: 143 kB stored, 11 kB at level 1, 9 kB at numpy's fixed level 6 for much more work.
_DEFLATE_LEVEL: Final = 1
# A picture of 4096 x 4096; CALVIN's largest array has 120 kB.
_LONGEST_ARRAY_BYTES: Final = 1 << 26
_DAMAGE: Final = (EOFError, OSError, ValueError, RuntimeError, TypeError, KeyError, SyntaxError, MemoryError)


def frame_name(number: int) -> str:
    """File name of frame `number`.

    >>> frame_name(42)
    'episode_0000042.npz'
    """
    return f"{_PREFIX}{number:07d}{_SUFFIX}"


def frame_number(name: str) -> int | None:
    """Frame number in a file name, or None when it is no frame file.

    >>> frame_number("episode_0000042.npz"), frame_number("statistics.yaml")
    (42, None)
    """
    digits = name[len(_PREFIX) : -len(_SUFFIX)]
    is_frame = name.startswith(_PREFIX) and name.endswith(_SUFFIX) and digits.isdecimal()
    return int(digits) if is_frame else None


def write_frame(path: Path, frame: Mapping[str, Array]) -> None:
    """Write one frame as a deflated npz that `np.load`, and so CALVIN's own loader, reads; equal frames give equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=_DEFLATE_LEVEL) as archive:
        for key in FRAME_KEYS:
            with archive.open(f"{key}.npy", "w") as member:
                np.lib.format.write_array(member, np.ascontiguousarray(frame[key]), allow_pickle=False)


def read_frame(path: Path, keys: Iterable[str] = FRAME_KEYS) -> dict[str, Array]:
    """Read and check the arrays `keys` of one frame file; raises DatasetError where one is missing or wrong."""
    frame = load_arrays(path, keys)
    for key, array in frame.items():
        check_frame_array(path.name, key, array)
    return frame


def load_arrays(path: Path, keys: Iterable[str]) -> dict[str, Array]:
    """Read the arrays `keys` of one frame file and leave their shapes and values unchecked."""
    try:
        with zipfile.ZipFile(path) as archive:
            stored = {name.removesuffix(".npy") for name in archive.namelist()}
            frame: dict[str, Array] = {}
            for key in keys:
                if key not in stored:
                    expected = f"{key!r}"
                    remedy = "Use frames in the CALVIN format."
                    raise DatasetError(f"frame {path.name}", got=f"keys {sorted(stored)}", expected=expected, remedy=remedy)
                frame[key] = _read_array(path, archive, key)
    except FileNotFoundError:
        raise DatasetError(
            f"frame {path}", got="no file", expected="an npz file", remedy="Copy the dataset again, all of it."
        ) from None
    # A cut file fails in zipfile, zlib or numpy's header parser, depending on where the cut is; a changed one also by its
    # method of compression or its password, or because a name is no text.
    except (*_DAMAGE, zipfile.BadZipFile, zlib.error, struct.error) as error:
        expected = "a complete npz file"
        remedy = "It is truncated or damaged: copy or collect it again."
        raise DatasetError(f"frame {path}", got=f"an unreadable file ({error})", expected=expected, remedy=remedy) from None
    return frame


def _read_array(path: Path, archive: zipfile.ZipFile, key: str) -> Array:
    """Read one array as `np.load` does, but refuse one that claims or unfolds to more than any camera's picture."""
    with archive.open(f"{key}.npy") as member:
        shape, is_fortran, dtype = _read_header(member)
        size_bytes = math.prod(shape) * dtype.itemsize
        if size_bytes > _LONGEST_ARRAY_BYTES:
            got = f"an array of {size_bytes / 1e6:.0f} MB"
            expected = f"at most {_LONGEST_ARRAY_BYTES / 1e6:.0f} MB"
            remedy = "It is no frame of a camera: copy or collect it again."
            raise DatasetError(f"{key} of frame {path}", got=got, expected=expected, remedy=remedy)
        data = member.read(size_bytes + 1)  # to its end, where the archive's checksum is compared
        if len(data) != size_bytes:
            raise ValueError(f"{key} with another size than its header says")
    array: Array = np.frombuffer(bytearray(data), dtype)
    return array.reshape(shape[::-1]).T if is_fortran else array.reshape(shape)


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an npy file of version 1.0, whose length is at most 64 kB; numpy's own parser takes more."""
    head = member.read(10)
    if head[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("an array in another format than npy 1.0")
    header = ast.literal_eval(member.read(int.from_bytes(head[8:], "little")).decode("latin1"))
    shape, is_fortran, dtype = tuple(header["shape"]), header["fortran_order"], np.dtype(str(header["descr"]))
    if dtype.hasobject or type(is_fortran) is not bool or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"an array of dtype {dtype} and shape {shape}")
    return shape, is_fortran, dtype


def raise_problem(problem: DatasetError | None, subject: str) -> None:
    """Raise what is wrong with an array, if anything is; `subject` names its file or episode."""
    if problem is not None:
        raise DatasetError(
            f"{problem.subject} of {subject}", got=problem.got, expected=problem.expected, remedy=problem.remedy
        )


def check_frame_array(subject: str, key: str, array: Array) -> None:
    """Raise DatasetError unless `array` has the shape, kind and range of `key`; `subject` names its file or episode."""
    raise_problem(array_problem(key, array), subject)


def array_problem(key: str, array: Array) -> DatasetError | None:
    """Return the first thing wrong with the array stored under `key`, or None."""
    shape = FRAME_SHAPES[key]
    if array.shape != shape:
        remedy = "Use frames in the CALVIN format."
        if key == "robot_obs":
            remedy = "These demonstrations are of another robot; the policy acts for a Franka Panda as in CALVIN."
        return _problem(key, f"shape {array.shape}", f"shape {shape}", remedy)
    if key.startswith("rgb_"):
        if array.dtype != np.uint8:
            return _problem(key, f"dtype {array.dtype}", "dtype uint8", "Store raw RGB bytes.")
        return None
    if array.dtype.kind != "f":
        return _problem(key, f"dtype {array.dtype}", "a float dtype", "Store it as float64.")
    if not np.isfinite(array).all():
        return _problem(key, "NaN or Inf", "finite values", "Drop this episode.")
    if key in ("actions", "rel_actions"):
        gripper = float(array[messages.POSE_SIZE])
        if gripper not in (messages.GRIPPER_CLOSE, messages.GRIPPER_OPEN):
            return _problem(f"gripper in {key}", str(gripper), "-1 (close) or 1 (open)", "Threshold it, do not scale it.")
    if key == "rel_actions" and np.abs(array[: messages.POSE_SIZE]).max() > _POSE_LIMIT:
        return _problem(
            key,
            f"pose up to {np.abs(array[: messages.POSE_SIZE]).max():.3f}",
            "[-1, 1]",
            "Store rel_actions divided by 0.02 m and 0.05 rad and clipped, as CALVIN does.",
        )
    return None


def _problem(subject: str, got: str, expected: str, remedy: str) -> DatasetError:
    return DatasetError(subject, got=got, expected=expected, remedy=remedy)


# Metres and radians per unit of a relative action, componentwise in the world frame: CALVIN's rule.
ACTION_SCALE: Final = np.array([POSITION_SCALE_M] * 3 + [ROTATION_SCALE_RAD] * 3)


def pose_differences(robot_obs: Array, poses: Array) -> Float64Array:
    """Return float64 (..., 6): the way from the measured pose to `poses` (..., >= 6), in units, not clipped."""
    difference = np.asarray(poses, dtype=np.float64)[..., :POSE_SIZE] - robot_obs[..., :POSE_SIZE]
    difference[..., 3:] = wrap_angle(difference[..., 3:])
    return np.asarray(difference / ACTION_SCALE)


def relative_actions(robot_obs: Array, actions: Array) -> Float64Array:
    """Turn absolute actions (..., 7) into relative ones, float64 (..., 7), clipped to [-1, 1]."""
    relative = np.array(actions, dtype=np.float64)
    relative[..., :POSE_SIZE] = np.clip(pose_differences(robot_obs, actions), -1.0, 1.0)
    return relative


def absolute_actions(robot_obs: Array, rel_actions: Array) -> Float64Array:
    """Turn relative actions into the poses that they ask for; the inverse of `relative_actions` where nothing is clipped."""
    absolute = np.array(rel_actions, dtype=np.float64)
    absolute[..., :POSE_SIZE] = robot_obs[..., :POSE_SIZE] + absolute[..., :POSE_SIZE] * ACTION_SCALE
    absolute[..., 3:POSE_SIZE] = wrap_angle(absolute[..., 3:POSE_SIZE])
    return absolute
