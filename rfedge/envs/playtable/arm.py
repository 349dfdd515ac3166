"""Adds the Franka Panda to the model: published joint frames and masses, shapes that collide, and hulls that are drawn.

arm.json holds its shapes, lengths in metres:

    capsules       of each joint's link, in the joint's frame: from, to, radius
    finger_boxes   of the left finger, in the frame of the hand: lower, upper corner
    drawn_links    parts of each link, the hull of rings: axis, centre, radius or half axes of an ellipse; and of a motor
                   housing that ends in a dome: axis, centre of its foot, centre of its cap
    drawn_hand     boxes that taper from (half x, half y, z) to the same
    drawn_finger   boxes of the left finger that taper from (x, x, y, y, z) to the same
"""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from rfedge.data.robot import LOWER_RAD, UPPER_RAD
from rfedge.data.scene.cameras import GRIPPER_FOV_DEG, MOUNT_EULER_RAD, MOUNT_POSITION_M
from rfedge.envs.interface import Float64Array
from rfedge.envs.playtable import kinematics, layout
from rfedge.envs.playtable.surfaces import VISUAL, numbers
from rfedge.envs.playtable.table import ROBOT_CLASS, box

ARM_JOINTS: Final = tuple(f"panda_joint{index}" for index in range(1, 8))
FINGER_JOINTS: Final = ("panda_finger_joint1", "panda_finger_joint2")
FINGER_MAX_M: Final = 0.04
# Stiff and, with the heaviest posture's inertia, critically damped; the lag CALVIN shows is made by `RobotControl`.
ARM_STIFFNESS_NM_RAD: Final = 10000.0
ARM_DAMPING_NMS_RAD: Final = 300.0
FINGER_STIFFNESS_N_M: Final = 10000.0
FINGER_DAMPING_NS_M: Final = 280.0

_SHAPES: Final[dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text())
_HAND_MASS_KG: Final = 0.81
_FINGER_MASS_KG: Final = 0.1
_FOOT: Final = {"type": "capsule", "fromto": "-0.06 0 0.06 0 0 0.06", "size": "0.075"}
_CORNERS: Final = 14  # of a ring


def add_arm(world: ET.Element) -> None:
    """Add base, seven links, hand with its camera, and two fingers."""
    parent = ET.SubElement(world, "body", {"name": "robot/panda_link0", "pos": numbers(layout.BASE_POSITION_M)})
    ET.SubElement(parent, "geom", {**_FOOT, **ROBOT_CLASS})
    x_m, y_m, z_m = layout.BASE_POSITION_M
    stand = {"type": "cylinder", "pos": numbers((x_m, y_m, 0.5 * z_m)), "size": numbers((0.13, 0.5 * z_m))}
    ET.SubElement(world, "geom", {"name": "pedestal_drawn", **stand, "material": "shell", **VISUAL})
    ET.SubElement(parent, "geom", {"name": "foot_drawn", **_FOOT, "material": "shell", **VISUAL})
    for index, (xyz, rpy) in enumerate(kinematics.JOINT_FRAMES):
        place = {"pos": numbers(xyz), "euler": numbers(rpy)}
        parent = ET.SubElement(parent, "body", {"name": f"robot/panda_link{index + 1}", "gravcomp": "1", **place})
        limits = numbers((LOWER_RAD[index], UPPER_RAD[index]))
        ET.SubElement(parent, "joint", {"name": ARM_JOINTS[index], "axis": "0 0 1", "range": limits, "armature": "0.05"})
        capsules = _SHAPES["capsules"][index]
        mass = repr(_SHAPES["link_masses_kg"][index] / len(capsules))
        for start, end, radius_m in capsules:
            shape = {"type": "capsule", "fromto": numbers((*start, *end)), "size": repr(radius_m)}
            ET.SubElement(parent, "geom", {**shape, "mass": mass, **ROBOT_CLASS})
        for number, part in enumerate(_SHAPES["drawn_links"][index]):
            _draw(parent, f"link{index}_{number}", part["material"])
    place = {"pos": numbers((0.0, 0.0, kinematics.HAND_OFFSET_M)), "euler": numbers(kinematics.HAND_EULER_RAD)}
    hand = ET.SubElement(parent, "body", {"name": "robot/panda_hand", "gravcomp": "1", **place})
    box(hand, (-0.03, -0.1, 0.0), (0.03, 0.1, 0.062), **ROBOT_CLASS, mass=repr(_HAND_MASS_KG))
    for index in range(len(_SHAPES["drawn_hand"])):
        _draw(hand, f"hand_{index}")
    for joint, sign, side in zip(FINGER_JOINTS, (1.0, -1.0), ("left", "right"), strict=True):
        _add_finger(hand, joint, sign, side)
    _add_camera(hand)


def _add_finger(hand: ET.Element, joint: str, sign: float, side: str) -> None:
    finger = ET.SubElement(hand, "body", {"name": f"robot/panda_{side}finger", "gravcomp": "1"})
    slide = {"type": "slide", "axis": numbers((0.0, sign, 0.0)), "range": numbers((0.0, FINGER_MAX_M))}
    # A light finger would sink into what it squeezes: MuJoCo's contacts are as stiff as the lighter body is heavy.
    ET.SubElement(finger, "joint", {"name": joint, "armature": "1.0", **slide})
    # The fingers decide the friction of whatever they hold: pads are rubber, blocks and wood are smooth.
    pad = {"friction": "1 0.02 0.001", "condim": "4", "priority": "1", "solref": "0.005 1"}
    mass = repr(_FINGER_MASS_KG / len(_SHAPES["finger_boxes"]))
    # CALVIN's fingers taper towards their tips, and stand 3.9 mm off the middle when the gripper is closed.
    for lower, upper in _SHAPES["finger_boxes"]:
        low, high = sorted((sign * lower[1], sign * upper[1]))
        box(finger, (lower[0], low, lower[2]), (upper[0], high, upper[2]), **ROBOT_CLASS, **pad, mass=mass)
    for index in range(len(_SHAPES["drawn_finger"])):
        _draw(finger, f"{side}finger_{index}")


def _add_camera(hand: ET.Element) -> None:
    frame = {"pos": numbers(MOUNT_POSITION_M), "euler": numbers(MOUNT_EULER_RAD)}
    mount = ET.SubElement(hand, "body", {"name": "robot/gripper_cam", **frame})
    housing = {"type": "box", "size": "0.04 0.0125 0.005", "material": "shell"}
    ET.SubElement(mount, "geom", {"name": "camera_drawn", **housing, **VISUAL})
    # MuJoCo's camera looks along its own -z with +y up: with -x to the right and -z up, forward is the mount's +y.
    axes = numbers((-1.0, 0.0, 0.0, 0.0, 0.0, -1.0))
    ET.SubElement(mount, "camera", {"name": "gripper", "xyaxes": axes, "fovy": repr(GRIPPER_FOV_DEG)})


def add_actuators(root: ET.Element) -> None:
    """Add position servos for joints and fingers, and keep the two fingers symmetric."""
    actuator = ET.SubElement(root, "actuator")
    # No force range: MuJoCo leaves a clamped servo out of its implicit step, which then overshoots.
    arm = {"kp": repr(ARM_STIFFNESS_NM_RAD), "kv": repr(ARM_DAMPING_NMS_RAD)}
    fingers = {"kp": repr(FINGER_STIFFNESS_N_M), "kv": repr(FINGER_DAMPING_NS_M)}
    for joints, gains in ((ARM_JOINTS, arm), (FINGER_JOINTS, fingers)):
        for joint in joints:
            ET.SubElement(actuator, "position", {"name": joint, "joint": joint, **gains})
    equality = ET.SubElement(root, "equality")
    pair = {"joint1": FINGER_JOINTS[0], "joint2": FINGER_JOINTS[1], "polycoef": "0 1 0 0 0"}
    ET.SubElement(equality, "joint", pair)


def add_arm_meshes(asset: ET.Element) -> None:
    def add(name: str, points: object) -> None:
        # MuJoCo makes the convex hull of a mesh that has no faces.
        ET.SubElement(asset, "mesh", {"name": name, "vertex": numbers(points), "inertia": "shell"})

    for link, parts in enumerate(_SHAPES["drawn_links"]):
        for index, part in enumerate(parts):
            rings = part["rings"] + (_dome(*part["dome"]) if "dome" in part else [])
            add(f"link{link}_{index}", np.vstack([_ring(*ring) for ring in rings]))
    for index, ends in enumerate(_SHAPES["drawn_hand"]):
        add(f"hand_{index}", _tapered(*((-x, x, -y, y, z) for x, y, z in ends)))
    for index, (low, high) in enumerate(_SHAPES["drawn_finger"]):
        for name, sign in (("left", 1.0), ("right", -1.0)):
            add(f"{name}finger_{index}", np.array(_tapered(low, high)) * (sign, sign, 1.0))


def _draw(parent: ET.Element, mesh: str, material: str = "shell") -> None:
    ET.SubElement(parent, "geom", {"name": f"{mesh}_drawn", "type": "mesh", "mesh": mesh, "material": material, **VISUAL})


def _dome(axis: str, start_m: Sequence[float], end_m: Sequence[float]) -> list[tuple[str, Sequence[float], float]]:
    """Return the rings of a motor housing of radius 55 mm from `start_m` to its rounded cap at `end_m`."""
    start, end = np.array(start_m), np.array(end_m)
    inward = (start - end) / np.linalg.norm(start - end)
    rounding = ((0.0, 0.03), (0.01, 0.045), (0.03, 0.053))
    return [(axis, start_m, 0.055), *((axis, (end + depth_m * inward).tolist(), radius_m) for depth_m, radius_m in rounding)]


def _ring(axis: str, centre_m: Sequence[float], radius_m: float | Sequence[float]) -> Float64Array:
    """Return the corners (_CORNERS, 3) of a ring about an axis, "x", "y" or "z"."""
    half = np.broadcast_to(radius_m, 2)
    turn = 2.0 * math.pi * np.arange(_CORNERS) / _CORNERS
    points = np.tile(np.array(centre_m, dtype=np.float64), (_CORNERS, 1))
    first, second = (other for other in range(3) if other != "xyz".index(axis))
    points[:, first] += half[0] * np.cos(turn)
    points[:, second] += half[1] * np.sin(turn)
    return points


def _tapered(low: Sequence[float], high: Sequence[float]) -> list[tuple[float, float, float]]:
    """Return the eight corners between two rectangles (x, x, y, y, z)."""
    return [(x, y, end[4]) for end in (low, high) for x in end[:2] for y in end[2:4]]
