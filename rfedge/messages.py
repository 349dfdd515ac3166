"""Messages between robot, policy and simulator: observations, actions, head state.

    observation.images.static    uint8  (200, 200, 3)   RGB, rows from the top
    observation.images.gripper   uint8  (84, 84, 3)     RGB
    observation.state            float  (15,)           optional; CALVIN robot_obs, see below
    task                         str                    the instruction in plain words
    action                       float  (k, 7)          dx dy dz droll dpitch dyaw gripper, k stacked control steps

CALVIN's names (`rgb_static`, ...) and openpi's (`observation/image`, ...) are read and written by adapters here and
appear nowhere else. Sources: CALVIN observation and action definitions (dataset README, calvin_env robot.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rfedge.arrays import Array, UInt8
from rfedge.errors import ContractError

__all__ = [
    "ACTION_SIZE",
    "GRIPPER_CLOSE",
    "GRIPPER_IMAGE_SHAPE",
    "GRIPPER_KEEP",
    "GRIPPER_OPEN",
    "OBSERVATION_KEYS",
    "POSE_SIZE",
    "POSITION_SCALE_M",
    "ROTATION_SCALE_RAD",
    "STATE_LIMIT",
    "STATE_NAMES",
    "STATE_SIZE",
    "STATIC_IMAGE_SHAPE",
    "FloatArray",
    "Observation",
    "PolicyState",
    "UInt8Array",
    "check_action",
    "check_state",
]

FloatArray = npt.NDArray[np.floating[Any]]
UInt8Array = UInt8

STATIC_IMAGE_SHAPE: Final = (200, 200, 3)
GRIPPER_IMAGE_SHAPE: Final = (84, 84, 3)
STATE_NAMES: Final = (
    *("tcp x (m)", "tcp y (m)", "tcp z (m)"),
    *("tcp euler x (rad)", "tcp euler y (rad)", "tcp euler z (rad)"),  # about fixed axes, x first
    "gripper width (m)",
    *(f"joint {number} (rad)" for number in range(1, 8)),
    "last gripper action (-1 close, 1 open)",
)
STATE_SIZE: Final = len(STATE_NAMES)
STATE_LIMIT: Final = 1e4  # metres and radians beyond this are a broken sensor; 1e308 would be Inf in the float32 of a graph
POSE_SIZE: Final = 6
ACTION_SIZE: Final = 7
POSITION_SCALE_M: Final = 0.02  # metres per unit of dx, dy, dz
ROTATION_SCALE_RAD: Final = 0.05  # radians per unit of droll, dpitch, dyaw
GRIPPER_CLOSE: Final = -1.0
GRIPPER_OPEN: Final = 1.0
# No gripper command: sent while nobody knows what the gripper does. A policy never predicts it. In `state[-1]`: unknown.
GRIPPER_KEEP: Final = 0.0

# convention -> the names of static image, gripper image, state and instruction
OBSERVATION_KEYS: Final = {
    "lerobot": ("observation.images.static", "observation.images.gripper", "observation.state", "task"),
    "calvin": ("rgb_static", "rgb_gripper", "robot_obs", "task"),
    "openpi": ("observation/image", "observation/wrist_image", "observation/state", "prompt"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """One time step seen by the robot."""

    static: UInt8Array  # (200, 200, 3) RGB of the fixed camera
    gripper: UInt8Array  # (84, 84, 3) RGB of the wrist camera
    state: FloatArray | None = None  # (15,) CALVIN robot_obs; None when the robot does not report it
    task: str = ""  # the instruction

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Observation:
        """Read any of the three key conventions.

        Raises:
            ContractError: no known image key is there, or an array has another shape or dtype.
        """
        for keys in OBSERVATION_KEYS.values():
            static_key, gripper_key, state_key, task_key = keys
            if static_key in fields:
                break
        else:
            raise ContractError(
                "observation",
                got=f"keys {sorted(fields)}",
                expected=f"one of {[keys[0] for keys in OBSERVATION_KEYS.values()]}",
                remedy="Rename the camera keys to one of these conventions.",
            )
        if gripper_key not in fields:
            expected = f"{gripper_key!r} beside {static_key!r}"
            raise ContractError("observation", got=f"keys {sorted(fields)}", expected=expected, remedy="Send both cameras.")
        observation = cls(
            static=np.asarray(fields[static_key]),
            gripper=np.asarray(fields[gripper_key]),
            state=None if fields.get(state_key) is None else np.asarray(fields[state_key]),
            task=str(fields.get(task_key, "")),
        )
        observation.check()
        return observation

    def to_dict(self, convention: str = "lerobot") -> dict[str, Any]:
        """Write the fields under the keys of `convention` ("lerobot", "calvin" or "openpi")."""
        static_key, gripper_key, state_key, task_key = OBSERVATION_KEYS[convention]
        fields: dict[str, Any] = {static_key: self.static, gripper_key: self.gripper, task_key: self.task}
        if self.state is not None:
            fields[state_key] = self.state
        return fields

    def check(self) -> None:
        """Raise ContractError unless every field has its shape and dtype and the state is finite and within its limit."""
        _check_image("observation.images.static", self.static, STATIC_IMAGE_SHAPE)
        _check_image("observation.images.gripper", self.gripper, GRIPPER_IMAGE_SHAPE)
        if self.state is not None:
            check_state(self.state)


@dataclass(frozen=True, slots=True, eq=False)
class PolicyState:
    """Everything a policy remembers; an argument and a result of every call.

    Attributes:
        h, c: float32 (layers, row, hidden) state after the last step of the LSTMs that run side by side: one in `carry`, one
            for each frame of the window in `window`; (0, 1, 0) with a head that has none.
        history: float32 (n, width) the last n <= window features, oldest first, of a GPT head; (0, width) of others.
        media: float32 (n, latents, vision width) what the cameras' part made of the last n < media_frames frames,
            oldest first; (0, ...) in a policy whose text reads the present frame alone.
        num_steps: calls since the reset.
    """

    h: FloatArray
    c: FloatArray
    history: FloatArray
    media: FloatArray
    num_steps: int = 0


def _check_image(name: str, image: Array, shape: tuple[int, ...]) -> None:
    # Float images are checked for NaN first: that is the message which helps most.
    if np.issubdtype(image.dtype, np.floating) and not np.isfinite(image).all():
        remedy = "Drop this frame; check the camera."
        raise ContractError(name, got="NaN or Inf pixels", expected="uint8 pixels 0 to 255", remedy=remedy)
    if image.shape != shape:
        remedy = "Resize or crop the camera image."
        raise ContractError(name, got=f"shape {image.shape}", expected=f"shape {shape}", remedy=remedy)
    if image.dtype != np.uint8:
        remedy = "Send raw RGB bytes, not normalised ones."
        raise ContractError(name, got=f"dtype {image.dtype}", expected="dtype uint8", remedy=remedy)


def _check_float(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        remedy = "See rfedge.messages for the axes."
        raise ContractError(name, got=f"shape {array.shape}", expected=f"shape {shape}", remedy=remedy)
    if not np.issubdtype(array.dtype, np.floating):
        raise ContractError(name, got=f"dtype {array.dtype}", expected="a float dtype", remedy="Cast it to float32.")
    if not np.isfinite(array).all():
        raise ContractError(name, got="NaN or Inf", expected="finite values", remedy="Check the sensor that fills it.")


def check_state(state: object) -> None:
    """Raise ContractError unless `state` is a float array (15,), finite and within `STATE_LIMIT`."""
    name = "observation.state"
    if not isinstance(state, np.ndarray):
        raise ContractError(name, got=f"a {type(state).__name__}", expected="a float array", remedy="Make it a NumPy array.")
    _check_float(name, state, (STATE_SIZE,))
    if np.abs(state).max() > STATE_LIMIT:
        expected, remedy = f"metres and radians up to {STATE_LIMIT:g}", "Check the sensor that fills it, and its units."
        raise ContractError(name, got=f"{float(np.abs(state).max()):.3g}", expected=expected, remedy=remedy)


def check_action(action: FloatArray) -> None:
    """Raise ContractError unless `action` is finite float (k, 7), pose in [-1, 1] and gripper exactly -1 or 1."""
    if action.ndim != 2 or action.shape[1] != ACTION_SIZE:
        remedy = "Stack k control steps."
        raise ContractError("action", got=f"shape {action.shape}", expected=f"(k, {ACTION_SIZE})", remedy=remedy)
    _check_float("action", action, action.shape)
    if np.abs(action[:, :POSE_SIZE]).max(initial=0.0) > 1.0:
        got, remedy = f"pose up to {np.abs(action[:, :POSE_SIZE]).max():.3f}", "Clip the pose."
        raise ContractError("action", got=got, expected="[-1, 1]", remedy=remedy)
    gripper = action[:, POSE_SIZE]
    if not np.isin(gripper, (GRIPPER_CLOSE, GRIPPER_OPEN)).all():
        remedy = "Threshold it at 0."
        raise ContractError("action", got=f"gripper {gripper.tolist()}", expected="-1 (close) or 1 (open)", remedy=remedy)
