"""Turns a source episode into the arrays of CALVIN frames: state, actions, images, at the wanted frequency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rfedge.data.conversion.options import GRIPPER_CONVENTIONS, ROTATION_FIELDS, ConversionOptions
from rfedge.data.conversion.records import IMAGE_SHAPES, Layout, SourceEpisode
from rfedge.data.frames import (
    ACTION_SCALE,
    SCENE_SIZE,
    Array,
    Float64Array,
    absolute_actions,
    pose_differences,
    relative_actions,
)
from rfedge.data.robot import NUM_JOINTS, refuse_another_robot
from rfedge.errors import DatasetError
from rfedge.messages import ACTION_SIZE, GRIPPER_CLOSE, GRIPPER_OPEN, POSE_SIZE, STATE_SIZE
from rfedge.robot.rotations import euler_steps, quaternions_to_euler, vectors_to_euler, wrap_angle

# A unit, to let pass what float32 rounding adds to actions that were clipped.
_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class SourceState:
    """Measurements of the robot, at the source's frames."""

    pose: Float64Array  # float64 (T, 6) tcp xyz in metres, in CALVIN's frame, and fixed-axis xyz angles in rad
    width_m: Float64Array  # (T, 1) distance of the fingers
    joints_rad: Float64Array  # (T, 7)


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """Targets of the actions, at the source's frames."""

    # float64 (T, 6) commanded motion in m and rad of Euler angles, for relative actions; else None
    steps: Float64Array | None
    targets: Float64Array | None  # (T, 6) commanded poses, in CALVIN's frame, for absolute actions; else None
    gripper: Float64Array  # (T,) -1 (close) or 1 (open)


@dataclass(frozen=True, slots=True, eq=False)
class MappedEpisode:
    """One episode in CALVIN's form."""

    frames: Mapping[str, Array]  # arrays of `rfedge.data.frames`, stacked over the frames on axis 0
    instructions: tuple[str, ...]
    num_clipped: int  # frames whose step was longer than an action can say


def map_episode(episode: SourceEpisode, layout: Layout, options: ConversionOptions, old_hz: float) -> MappedEpisode:
    """Map one episode; images that it does not have are black."""
    times = frame_times(episode.num_frames, old_hz, options.fps or old_hz)
    state = source_state(episode, options)
    motion = source_motion(episode, layout, options, state)
    gripper = motion.gripper[times.held]
    before = np.concatenate((gripper[:1], gripper[:-1]))
    pose = resample_poses(times.starts, state.pose)
    width, joints = resample_values(times.starts, state.width_m), resample_values(times.starts, state.joints_rad)
    robot_obs = np.concatenate((pose, width, joints, before[:, None]), axis=1)
    for step, row in enumerate(robot_obs):
        refuse_another_robot(f"{episode.name}, step {step}", row)
    rel_actions, actions, num_clipped = _both_actions(motion, times, robot_obs)
    for array in (rel_actions, actions):
        array[:, POSE_SIZE] = gripper
    scene = episode.values.get("scene_obs")
    frames: dict[str, Array] = {
        "robot_obs": robot_obs,
        "scene_obs": np.zeros((len(robot_obs), SCENE_SIZE))
        if scene is None
        else _sized(episode, "scene_obs", SCENE_SIZE)[times.held],
        "rel_actions": rel_actions,
        "actions": actions,
    }
    for name, shape in IMAGE_SHAPES.items():
        images = episode.images.get(name)
        # A view of one pixel: where there is no camera nothing is held either.
        black = np.broadcast_to(np.zeros((), dtype=np.uint8), (len(robot_obs), *shape))
        frames[f"rgb_{name}"] = black if images is None else images[times.held]
    return MappedEpisode(frames, tuple(episode.instructions[index] for index in times.held), num_clipped)


def source_state(episode: SourceEpisode, options: ConversionOptions) -> SourceState:
    """Return pose, width and joints as measured, whatever their form in the source."""
    values = episode.values
    if "state" in values:
        if values["state"].shape[1] != STATE_SIZE:
            raise DatasetError(
                f"state of {episode.name}",
                got=f"{values['state'].shape[1]} numbers",
                expected=f"CALVIN's {STATE_SIZE}: tcp xyz, tcp euler xyz, gripper width, 7 joints, gripper action",
                remedy="Name its parts, say --map tcp_pos=KEY[0:3], tcp_euler (or tcp_quat, tcp_axis_angle), "
                "gripper_width, joints.",
            )
        state = _finite(episode, "state")
        position, euler, width, joints = state[:, :3], state[:, 3:6], state[:, 6:7], state[:, 7:14]
    else:
        position = _required(episode, "tcp_pos", 3)
        euler = _euler(episode)
        if "gripper_width" not in values:
            raise _no_field(episode, "gripper_width")
        # Two numbers are two fingers, the second often counted the other way.
        width = np.abs(_finite(episode, "gripper_width")).sum(axis=1, keepdims=True)
        if "joints" not in values and "joints" in options.allow_missing:
            joints = np.zeros((episode.num_frames, NUM_JOINTS))
        else:
            joints = _required(episode, "joints", NUM_JOINTS)
    _refuse_degrees(episode, euler)
    pose = np.concatenate((position + np.array(options.tcp_offset_m), euler), axis=1)
    return SourceState(pose, width, joints)


def source_motion(episode: SourceEpisode, layout: Layout, options: ConversionOptions, state: SourceState) -> Motion:
    """Return what the actions ask for in metres and radians of Euler angles, whatever their form in the source."""
    commands = _actions(episode)
    gripper = _gripper(episode, commands[:, -1], options.gripper or layout.gripper)
    rotation = options.rotation or layout.rotation
    if options.actions == "relative":
        _refuse_long_units(episode, options, commands)
        scale = [options.position_scale_m or layout.position_scale_m] * 3
        scale += [options.rotation_scale_rad or layout.rotation_scale_rad] * 3
        steps = commands[:, :POSE_SIZE] * np.array(scale)
        if rotation == "axis-angle":
            # A rotation about the world's axes; CALVIN's step is the difference that it makes in the Euler angles.
            steps[:, 3:] = euler_steps(state.pose[:, 3:], steps[:, 3:])
        return Motion(steps, None, gripper)
    if options.actions == "absolute":
        targets = commands[:, :POSE_SIZE].copy()
        targets[:, :3] += np.array(options.tcp_offset_m)
        if rotation == "axis-angle":
            targets[:, 3:] = vectors_to_euler(targets[:, 3:])
        return Motion(None, targets, gripper)
    return Motion(None, None, gripper)


def _sized(episode: SourceEpisode, name: str, size: int) -> Float64Array:
    values = episode.values[name]
    if values.shape[1] != size:
        remedy = f"Map others with --map {name}=KEY[START:STOP]; the policy acts for a Panda, 7 joints."
        raise DatasetError(f"{name} of {episode.name}", got=f"{values.shape[1]} numbers", expected=str(size), remedy=remedy)
    return _finite(episode, name)


def _finite(episode: SourceEpisode, name: str) -> Float64Array:
    values = episode.values[name]
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        expected = "finite values"
        remedy = "Drop this episode."
        raise DatasetError(f"{name} of {episode.name}, step {bad[0]}", got="NaN or Inf", expected=expected, remedy=remedy)
    return values


def _refuse_degrees(episode: SourceEpisode, euler: Float64Array) -> None:
    largest = float(np.abs(euler).max())
    if largest > 2.0 * np.pi + 1e-6:
        got = f"values up to {largest:.4g}"
        remedy = "Degrees? Convert them first, or map another array with --map tcp_euler=KEY."
        raise DatasetError(f"tcp angles of {episode.name}", got=got, expected="radians, within one turn", remedy=remedy)


def _required(episode: SourceEpisode, name: str, size: int) -> Float64Array:
    if name not in episode.values:
        raise _no_field(episode, name)
    return _sized(episode, name, size)


def _no_field(episode: SourceEpisode, name: str) -> DatasetError:
    remedy = f"Say where it is with --map {name}=KEY"
    remedy += ", or pass --allow-missing joints." if name == "joints" else "."
    return DatasetError(f"state of {episode.name}", got=f"no {name}", expected="CALVIN's state or its parts", remedy=remedy)


def _euler(episode: SourceEpisode) -> Float64Array:
    name = next((name for name in ROTATION_FIELDS if name in episode.values), None)
    if name is None:
        raise _no_field(episode, "tcp_euler")
    rows = _sized(episode, name, 4 if "quat" in name else 3)
    if "quat" not in name:
        return vectors_to_euler(rows) if name == "tcp_axis_angle" else rows
    if (np.linalg.norm(rows, axis=1) < 1e-6).any():
        raise DatasetError(
            f"{name} of {episode.name}", got="a quaternion of length 0", expected="rotations", remedy="Map another array."
        )
    return quaternions_to_euler(rows if name == "tcp_quat" else np.roll(rows, -1, axis=1))


def _actions(episode: SourceEpisode) -> Float64Array:
    if "actions" not in episode.values:
        remedy = "Say where with --map actions=KEY."
        raise DatasetError(episode.name, got="no actions", expected=f"{ACTION_SIZE} numbers a frame", remedy=remedy)
    actions = episode.values["actions"]
    if actions.shape[1] != ACTION_SIZE:
        raise DatasetError(
            f"actions of {episode.name}",
            got=f"{actions.shape[1]} numbers",
            expected=f"{ACTION_SIZE}: xyz, euler xyz and gripper of a tool centre point",
            remedy="Actions in joint angles or of two arms cannot be converted; choose elements with --map "
            "actions=KEY[START:STOP].",
        )
    return _finite(episode, "actions")


def _gripper(episode: SourceEpisode, commands: Float64Array, convention: str) -> Float64Array:
    """Return -1 (close) or 1 (open) for every frame."""
    closed, opened = GRIPPER_CONVENTIONS[convention]
    low, high = sorted((closed, opened))
    smallest, largest = float(commands.min()), float(commands.max())
    # Only zeros and ones where -1 closes or opens: every zero would be taken for a command.
    only_zero_one = low < 0.0 and bool(np.isin(commands, (0.0, 1.0)).all()) and smallest == 0.0
    if smallest < low - _UNIT_TOLERANCE or largest > high + _UNIT_TOLERANCE or only_zero_one:
        got = f"values from {smallest:g} to {largest:g}"
        expected = f"{closed:g} (close) to {opened:g} (open), convention {convention}"
        remedy = f"Name another one with --gripper-convention: {', '.join(GRIPPER_CONVENTIONS)}."
        raise DatasetError(f"gripper action of {episode.name}", got=got, expected=expected, remedy=remedy)
    is_open = (commands - 0.5 * (low + high)) * (opened - closed) > 0.0
    return np.where(is_open, GRIPPER_OPEN, GRIPPER_CLOSE)


def _refuse_long_units(episode: SourceEpisode, options: ConversionOptions, commands: Float64Array) -> None:
    stated = options.position_scale_m is not None or options.rotation_scale_rad is not None
    largest = float(np.abs(commands[:, :POSE_SIZE]).max())
    if not stated and largest > 1.0 + _UNIT_TOLERANCE:
        got = f"values up to {largest:.3g}"
        remedy = "Pass --actions absolute for poses, or units with --position-scale-m and --rotation-scale-rad."
        raise DatasetError(f"relative actions of {episode.name}", got=got, expected="[-1, 1]", remedy=remedy)


def _both_actions(motion: Motion, times: FrameTimes, robot_obs: Float64Array) -> tuple[Float64Array, Float64Array, int]:
    """Return relative and absolute actions (N, 7), their grippers still to be filled in, and how many were clipped."""
    if motion.steps is not None:
        units = resample_steps(times, motion.steps) / ACTION_SCALE
        rel_actions = np.concatenate((np.clip(units, -1.0, 1.0), np.ones((len(units), 1))), axis=1)
        return rel_actions, absolute_actions(robot_obs, rel_actions), _count_clipped(units)
    if motion.targets is not None:
        # The pose that is asked for at a frame is due at the next one.
        poses = resample_poses(times.ends - 1.0, motion.targets)
    else:
        poses = np.concatenate((robot_obs[1:, :POSE_SIZE], robot_obs[-1:, :POSE_SIZE]))
    actions = np.concatenate((poses, np.ones((len(poses), 1))), axis=1)
    return relative_actions(robot_obs, actions), actions, _count_clipped(pose_differences(robot_obs, actions))


def _count_clipped(units: Float64Array) -> int:
    return int((np.abs(units).max(axis=1) > 1.0 + _UNIT_TOLERANCE).sum())


# --- from one frequency to another ------------------------------------------------------------------------------------
class FrameTimes(NamedTuple):
    """Where the new frames lie among the old ones, in old frames."""

    starts: Float64Array  # (N,) beginning of each new control step
    ends: Float64Array
    held: npt.NDArray[np.int64]  # (N,) last old frame at or before each new one


def frame_times(num_frames: int, old_hz: float, new_hz: float) -> FrameTimes:
    """Cut the time of `num_frames` control steps at `old_hz` into steps at `new_hz`; a rest shorter than one is lost."""
    step = old_hz / new_hz
    count = max(int(num_frames / step + 1e-9), 1)
    bounds: Float64Array = np.asarray(step * np.arange(count + 1), dtype=np.float64)
    held = np.minimum(np.floor(bounds[:-1] + 1e-9).astype(np.int64), num_frames - 1)
    return FrameTimes(bounds[:-1], bounds[1:], held)


def resample_values(times: Float64Array, values: Float64Array) -> Float64Array:
    """Interpolate (T, n) values that belong to the frames 0, 1, ...; after the last frame its value stays."""
    old = np.arange(len(values))
    return np.stack([np.interp(times, old, column) for column in values.T], axis=1)


def resample_poses(times: Float64Array, poses: Float64Array) -> Float64Array:
    """Interpolate (T, 6) positions in m, and angles in rad along the shorter way round."""
    angles_rad = wrap_angle(resample_values(times, np.unwrap(poses[:, 3:], axis=0)))
    return np.concatenate((resample_values(times, poses[:, :3]), angles_rad), axis=1)


def resample_steps(times: FrameTimes, steps: Float64Array) -> Float64Array:
    """Turn (T, n) steps, one a frame, into steps of other length along the same path."""
    path = np.concatenate((np.zeros((1, steps.shape[1])), np.cumsum(steps, axis=0)))
    return resample_values(times.ends, path) - resample_values(times.starts, path)
