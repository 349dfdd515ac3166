"""Adds the Franka Panda to the model: published joint frames and masses, capsules and boxes for its shape."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Final

from rfedge.envs.playtable import kinematics, layout
from rfedge.envs.playtable.arm_shape import draw_base, draw_camera, draw_finger, draw_hand, draw_link
from rfedge.envs.playtable.surfaces import numbers
from rfedge.envs.playtable.table import ROBOT_CLASS, box

ARM_JOINTS: Final = tuple(f"panda_joint{index}" for index in range(1, 8))
FINGER_JOINTS: Final = ("panda_finger_joint1", "panda_finger_joint2")
FINGER_MAX_M: Final = 0.04

_LINK_MASSES_KG: Final = (2.7, 2.73, 2.04, 2.08, 3.0, 1.3, 0.2)
_HAND_MASS_KG: Final = 0.81
_FINGER_MASS_KG: Final = 0.1

# Capsules (from, to, radius) in each joint frame, in metres.
_CAPSULES: Final = (
    (((0.0, 0.0, -0.19), (0.0, 0.0, -0.03), 0.065),),
    (((0.0, 0.0, -0.06), (0.0, 0.0, 0.06), 0.062), ((0.0, -0.03, 0.0), (0.0, -0.14, 0.0), 0.06)),
    (((0.0, 0.0, -0.13), (0.0, 0.0, -0.06), 0.06), ((0.03, 0.0, 0.0), (0.0825, 0.03, 0.0), 0.055)),
    (((0.0, 0.0, -0.06), (0.0, 0.0, 0.06), 0.06), ((-0.03, 0.05, 0.0), (-0.0825, 0.12, 0.0), 0.055)),
    (((0.0, 0.0, -0.25), (0.0, 0.0, -0.15), 0.06), ((0.0, 0.07, -0.13), (0.0, 0.07, -0.02), 0.035)),
    (((0.0, 0.0, -0.05), (0.0, 0.0, 0.02), 0.05), ((0.03, 0.0, 0.0), (0.088, 0.01, 0.0), 0.045)),
    (((0.0, 0.0, 0.0), (0.0, 0.0, 0.07), 0.042),),
)
# Boxes (lower, upper corner) of the left finger in the frame of the hand: CALVIN's tapers towards its tip, and its inner
# side stands 3.9 mm off the middle when the gripper is closed.
_FINGER_BOXES: Final = (
    ((-0.0105, 0.0055, 0.0586), (0.0105, 0.0245, 0.085)),
    ((-0.0100, 0.0045, 0.085), (0.0100, 0.0175, 0.115)),
    ((-0.0092, 0.0039, 0.115), (0.0092, 0.0095, 0.1548)),
)

# Stiff and, with the heaviest posture's inertia, critically damped; the lag CALVIN shows is made by `RobotControl`.
ARM_STIFFNESS_NM_RAD: Final = 10000.0
ARM_DAMPING_NMS_RAD: Final = 300.0
FINGER_STIFFNESS_N_M: Final = 10000.0
FINGER_DAMPING_NS_M: Final = 280.0


def add_arm(world: ET.Element) -> None:
    """Add base, seven links, hand with its camera, and two fingers."""
    base_position = layout.BASE_POSITION_M
    shell = ROBOT_CLASS
    parent = ET.SubElement(world, "body", {"name": "robot/panda_link0", "pos": numbers(base_position)})
    ET.SubElement(parent, "geom", {"type": "capsule", "fromto": "-0.06 0 0.06 0 0 0.06", "size": "0.075", **shell})
    draw_base(world, parent)
    for index, (xyz, rpy) in enumerate(kinematics.JOINT_FRAMES):
        place = {"pos": numbers(xyz), "euler": numbers(rpy)}
        parent = ET.SubElement(parent, "body", {"name": f"robot/panda_link{index + 1}", "gravcomp": "1", **place})
        limits = numbers((kinematics.LOWER_RAD[index], kinematics.UPPER_RAD[index]))
        ET.SubElement(parent, "joint", {"name": ARM_JOINTS[index], "axis": "0 0 1", "range": limits, "armature": "0.05"})
        capsules = _CAPSULES[index]
        for start, end, radius_m in capsules:
            mass = repr(_LINK_MASSES_KG[index] / len(capsules))
            ends = numbers((*start, *end))
            ET.SubElement(parent, "geom", {"type": "capsule", "fromto": ends, "size": repr(radius_m), "mass": mass, **shell})
        draw_link(parent, index)
    place = {"pos": numbers((0.0, 0.0, kinematics.HAND_OFFSET_M)), "euler": numbers(kinematics.HAND_EULER_RAD)}
    hand = ET.SubElement(parent, "body", {"name": "robot/panda_hand", "gravcomp": "1", **place})
    box(hand, (-0.03, -0.1, 0.0), (0.03, 0.1, 0.062), **ROBOT_CLASS, mass=repr(_HAND_MASS_KG))
    draw_hand(hand)
    _add_fingers(hand)
    _add_camera(hand)


def _add_fingers(hand: ET.Element) -> None:
    for joint, sign, link in zip(FINGER_JOINTS, (1.0, -1.0), ("panda_leftfinger", "panda_rightfinger"), strict=True):
        finger = ET.SubElement(hand, "body", {"name": f"robot/{link}", "gravcomp": "1"})
        slide = {"type": "slide", "axis": numbers((0.0, sign, 0.0)), "range": numbers((0.0, FINGER_MAX_M))}
        # A light finger would sink into what it squeezes: MuJoCo's contacts are as stiff as the lighter body is heavy.
        ET.SubElement(finger, "joint", {"name": joint, "armature": "1.0", **slide})
        # The fingers decide the friction of whatever they hold: pads are rubber, blocks and wood are smooth.
        pad = {"friction": "1 0.02 0.001", "condim": "4", "priority": "1", "solref": "0.005 1"}
        mass = repr(_FINGER_MASS_KG / len(_FINGER_BOXES))
        for lower, upper in _FINGER_BOXES:
            low, high = sorted((sign * lower[1], sign * upper[1]))
            box(finger, (lower[0], low, lower[2]), (upper[0], high, upper[2]), **ROBOT_CLASS, **pad, mass=mass)
        draw_finger(finger, "left" if sign > 0.0 else "right")


def _add_camera(hand: ET.Element) -> None:
    frame = {"pos": numbers(layout.GRIPPER_CAMERA_POSITION_M), "euler": numbers(layout.GRIPPER_CAMERA_EULER_RAD)}
    mount = ET.SubElement(hand, "body", {"name": "robot/gripper_cam", **frame})
    # MuJoCo's camera looks along its own -z with +y up: with -x to the right and -z up, forward is the mount's +y.
    axes = numbers((-1.0, 0.0, 0.0, 0.0, 0.0, -1.0))
    fov = repr(layout.GRIPPER_CAMERA_FOV_DEG)
    draw_camera(mount)
    ET.SubElement(mount, "camera", {"name": "gripper", "xyaxes": axes, "fovy": fov})


def add_actuators(root: ET.Element) -> None:
    """Add position servos for joints and fingers, and keep the two fingers symmetric."""
    actuator = ET.SubElement(root, "actuator")
    for joint in ARM_JOINTS:
        # No force range: MuJoCo leaves a clamped servo out of its implicit step, which then overshoots.
        gains = {"kp": repr(ARM_STIFFNESS_NM_RAD), "kv": repr(ARM_DAMPING_NMS_RAD)}
        ET.SubElement(actuator, "position", {"name": joint, "joint": joint, **gains})
    for joint in FINGER_JOINTS:
        gains = {"kp": repr(FINGER_STIFFNESS_N_M), "kv": repr(FINGER_DAMPING_NS_M)}
        ET.SubElement(actuator, "position", {"name": joint, "joint": joint, **gains})
    equality = ET.SubElement(root, "equality")
    pair = {"joint1": FINGER_JOINTS[0], "joint2": FINGER_JOINTS[1], "polycoef": "0 1 0 0 0"}
    ET.SubElement(equality, "joint", pair)
