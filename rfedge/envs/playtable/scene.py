"""Writes the whole PlayTable as one MJCF text: physics options, floor, light, static camera, table, arm and blocks."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Final

from rfedge.data.scene.cameras import STATIC_AXES, STATIC_EYE_M, STATIC_FOV_DEG
from rfedge.envs.interface import CONTROL_HZ
from rfedge.envs.playtable.arm import add_actuators, add_arm, add_arm_meshes
from rfedge.envs.playtable.layout import TableLayout
from rfedge.envs.playtable.looks import MATERIALS
from rfedge.envs.playtable.surfaces import numbers
from rfedge.envs.playtable.table import TABLE_CLASS, add_blocks, add_floor, add_table, add_table_assets, add_table_meshes

SUBSTEPS: Final = 16  # physics steps per control step, so 480 Hz
_PHYSICS_HZ: Final = CONTROL_HZ * SUBSTEPS
_SHADOW_SIZE: Final = 256


def build_mjcf(layout: TableLayout) -> str:
    root = ET.Element("mujoco", {"model": f"playtable_{layout.scene.lower()}"})
    # "XYZ" with capitals is MuJoCo's name for fixed axes.
    ET.SubElement(root, "compiler", {"angle": "radian", "eulerseq": "XYZ", "autolimits": "true"})
    solver = {"integrator": "implicitfast", "cone": "elliptic", "impratio": "10", "iterations": "50"}
    ET.SubElement(root, "option", {"timestep": repr(1.0 / _PHYSICS_HZ), "gravity": "0 0 -9.8", **solver})
    # Clipping planes are multiples of the extent, which is therefore pinned to one metre.
    ET.SubElement(root, "statistic", {"extent": "1", "center": "0 0 0.4"})
    visual = ET.SubElement(root, "visual")
    ET.SubElement(visual, "global", {"offwidth": "200", "offheight": "200"})
    ET.SubElement(
        visual,
        "quality",
        {"offsamples": "0", "shadowsize": repr(_SHADOW_SIZE), "numslices": "16", "numstacks": "4", "numquads": "1"},
    )
    ET.SubElement(visual, "map", {"znear": "0.01", "zfar": "10", "shadowclip": "0.8"})
    ET.SubElement(visual, "headlight", {"diffuse": "0 0 0", "specular": "0 0 0"})
    # The friction of wood and blocks is the product of CALVIN's 0.5 and 0.7, as its engine combines them.
    default = ET.SubElement(root, "default")
    ET.SubElement(default, "geom", {"friction": "0.35 0.001 0.0001"})
    asset = ET.SubElement(root, "asset")
    sky = {"type": "skybox", "builtin": "flat", "rgb1": "1 1 1", "width": "16", "height": "16"}
    ET.SubElement(asset, "texture", sky)
    add_table_meshes(asset, layout)
    add_table_assets(asset, layout)
    add_arm_meshes(asset)
    world = ET.SubElement(root, "worldbody")
    # Colours, light and cameras are `rfedge.envs.playtable.looks`'s to set; here is what there is to set.
    for name in (*MATERIALS, "slot"):
        ET.SubElement(asset, "material", {"name": name, "specular": "0"})
    for name, casts in (("above", "false"), ("below", "false"), ("sun", "true")):
        light = {"name": name, "directional": "true", "castshadow": casts, "pos": "0 -0.1 1.5"}
        ET.SubElement(world, "light", {**light, "ambient": "0 0 0", "specular": "0 0 0"})
    right, down, _ = STATIC_AXES
    place = {"pos": numbers(STATIC_EYE_M), "xyaxes": numbers((*right, *-down)), "fovy": repr(STATIC_FOV_DEG)}
    ET.SubElement(world, "camera", {"name": "static", **place})
    floor = ET.SubElement(world, "body", {"name": "plane/base_link"})
    ET.SubElement(floor, "geom", {"type": "plane", "size": "6 6 0.1", **TABLE_CLASS})
    add_floor(asset, floor)
    add_table(world, layout)
    add_arm(world)
    add_blocks(world, layout)
    add_actuators(root)
    return ET.tostring(root, encoding="unicode")
