"""Requests of a client: one frame with its instruction, or a reset. Fields, shapes and dtypes are on a list.

    observation/image, observation/wrist_image, observation/state, prompt            openpi
    observation.images.static, observation.images.gripper, observation.state, task   rfedge
    rgb_static, rgb_gripper, robot_obs, task                                         CALVIN
    reset        true: begin `prompt` (or `task`), or the present instruction, anew; with the first frame or without images
    deadline_ms  number: how long this request may wait for its turn; the server's own limit if that is shorter

Further sensors (`observation/...`, `observation....`, `depth_...`, `rgb_...`, `scene_obs`) are left unread; any other key is
refused, because a misspelt `prompt` or `reset` would be lost without a word.

Answers come in the order of the requests, so nothing else tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from rfedge.errors import ContractError
from rfedge.messages import GRIPPER_IMAGE_SHAPE, OBSERVATION_KEYS, STATE_SIZE, STATIC_IMAGE_SHAPE, Observation
from rfedge.robot.camera import Resize, fit_image

CONTROL_KEYS: Final = frozenset(("reset", "deadline_ms"))
TASK_KEYS: Final = frozenset(keys[3] for keys in OBSERVATION_KEYS.values())
CAMERA_AND_STATE_KEYS: Final = frozenset(key for keys in OBSERVATION_KEYS.values() for key in keys)
SENSOR_PREFIXES: Final = ("observation/", "observation.", "depth_", "rgb_", "scene_obs")
# Images that are brought to size, and states that the policy does not read, may have other shapes up to these.
MAX_IMAGE_SIZE: Final = 2048
MIN_IMAGE_SIZE: Final = 32
MAX_STATE_SIZE: Final = 64


@dataclass(frozen=True, slots=True)
class RequestRules:
    """Limits of this server."""

    max_instruction_characters: int
    resize: Resize | None  # the policy's camera geometry, to bring images to its size; None refuses others
    uses_state: bool  # else states, which robots of other policies send in other lengths, are checked and dropped


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One request that fits."""

    frame: Observation | None  # its images as they came; None for a reset alone
    instruction: str  # "" for the instruction that holds already
    resets: bool  # before the frame, where there is one
    deadline_ms: float | None
    resize: Resize | None = None

    def observation(self) -> Observation:
        """Return the frame, its images brought to size."""
        assert self.frame is not None, "a reset alone has none"
        if self.resize is None:
            return self.frame
        static = fit_image(self.frame.static, STATIC_IMAGE_SHAPE, self.resize)
        return replace(self.frame, static=static, gripper=fit_image(self.frame.gripper, GRIPPER_IMAGE_SHAPE, self.resize))


def parse_request(message: Mapping[str, Any], rules: RequestRules) -> Request:
    """Check a decoded message, whose images are neither copied nor scaled here; ContractError names the field."""
    resets = message.get("reset", False)
    if not isinstance(resets, bool):
        raise _refused("reset", f"a {type(resets).__name__}", "true or false", "Send reset: true, or leave it out.")
    fields = {key: value for key, value in message.items() if key not in CONTROL_KEYS}
    instruction = _instruction(fields, rules)
    return Request(
        frame=None if resets and not fields.keys() - TASK_KEYS else _read_frame(fields, rules),
        instruction=instruction,
        resets=resets,
        deadline_ms=_deadline_ms(message.get("deadline_ms")),
        resize=rules.resize,
    )


def _read_frame(fields: dict[str, Any], rules: RequestRules) -> Observation:
    for keys in OBSERVATION_KEYS.values():
        if keys[0] in fields:
            break
    else:
        raise _refused(
            "observation",
            f"keys {_names(fields)}",
            f"one of {', '.join(keys[0] for keys in OBSERVATION_KEYS.values())}",
            "Name the cameras as one of these conventions does.",
        )
    static_key, gripper_key, state_key, _ = keys
    _check_known(fields, frozenset(keys) | TASK_KEYS)
    if gripper_key not in fields:
        raise _refused("observation", f"keys {_names(fields)}", f"{gripper_key} beside {static_key}", "Send both cameras.")
    _check_image(static_key, fields[static_key], STATIC_IMAGE_SHAPE, rules)
    _check_image(gripper_key, fields[gripper_key], GRIPPER_IMAGE_SHAPE, rules)
    state = fields.get(state_key)
    if isinstance(state, list) and all(type(number) in (int, float) for number in state):
        state = np.array(state, dtype=np.float64)
    if state is not None:
        _check_state(state_key, state, rules)
    kept = state.astype(np.float64) if state is not None and rules.uses_state else None
    return Observation(fields[static_key], fields[gripper_key], kept)


def _check_known(fields: Mapping[str, Any], known: frozenset[str]) -> None:
    unread = {key for key in fields.keys() - CAMERA_AND_STATE_KEYS if key.startswith(SENSOR_PREFIXES)}
    unknown = sorted(fields.keys() - known - unread)
    if unknown:
        raise _refused(
            "observation", f"key {unknown[0][:60]!r}", f"{', '.join(sorted(known | CONTROL_KEYS))}", "Leave the others out."
        )


def _check_image(name: str, image: object, shape: tuple[int, int, int], rules: RequestRules) -> None:
    if not isinstance(image, np.ndarray):
        raise _refused(name, f"a {type(image).__name__}", f"a uint8 array {shape}", "Send the camera's pixels.")
    if image.dtype != np.uint8:
        raise _refused(name, f"dtype {image.dtype}", "dtype uint8", "Send raw RGB bytes, not normalised ones.")
    if image.shape == shape:
        return
    if rules.resize is None:
        raise _refused(name, f"shape {image.shape}", f"shape {shape}", "Send that size, or start the server with --resize.")
    sides = image.shape[:2]
    if image.ndim != 3 or image.shape[2] != 3 or not all(MIN_IMAGE_SIZE <= side <= MAX_IMAGE_SIZE for side in sides):
        raise _refused(
            name,
            f"shape {image.shape}",
            f"(height, width, 3) with both from {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE}",
            "Send a picture of such a size: the server brings it to the policy's as its demonstrations were.",
        )


def _check_state(name: str, state: object, rules: RequestRules) -> None:
    if not isinstance(state, np.ndarray) or state.dtype.kind not in "iuf" or state.ndim != 1:
        got = f"{state.dtype} {state.shape}" if isinstance(state, np.ndarray) else f"a {type(state).__name__}"
        raise _refused(name, got, f"a float array ({STATE_SIZE},)", "See rfedge.messages for its numbers.")
    if rules.uses_state and len(state) != STATE_SIZE:
        raise _refused(
            name, f"shape {state.shape}", f"shape ({STATE_SIZE},)", "This policy reads the state; see rfedge.messages."
        )
    if len(state) > MAX_STATE_SIZE:
        raise _refused(name, f"{len(state)} numbers", f"at most {MAX_STATE_SIZE}", "Send the robot's state alone.")
    if not np.isfinite(state).all():
        raise _refused(name, "NaN or Inf", "finite values", "Check the sensor that fills it.")


def _instruction(fields: Mapping[str, Any], rules: RequestRules) -> str:
    given = [fields[key] for key in sorted(TASK_KEYS) if fields.get(key) is not None]
    if not given:
        return ""
    if len(given) > 1:
        raise _refused("instruction", "both prompt and task", "one of them", "Send it once.")
    instruction = given[0]
    if not isinstance(instruction, str):
        raise _refused("instruction", f"a {type(instruction).__name__}", "a string", "Send plain words.")
    if not instruction.strip():
        raise _refused("instruction", "no words", "plain words", "Leave it out to keep the present one.")
    if len(instruction) > rules.max_instruction_characters:
        raise _refused(
            "instruction",
            f"{len(instruction)} characters",
            f"at most {rules.max_instruction_characters}",
            "Use fewer words.",
        )
    return instruction


def _deadline_ms(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0:
        return float(value)
    raise _refused("deadline_ms", repr(value)[:40], "a positive number", "Give it in milliseconds, or leave it out.")


def _names(fields: Mapping[str, Any]) -> list[str]:
    return sorted(key[:60] for key in fields)[:8]


def _refused(subject: str, got: str, expected: str, remedy: str) -> ContractError:
    return ContractError(subject, got=got, expected=expected, remedy=remedy)
