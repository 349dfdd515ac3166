"""Paints the textures of a compiled scene."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfedge.envs.playtable.layout import TableLayout
from rfedge.envs.playtable.wood import paint_wood
from rfedge.messages import UInt8Array

__all__ = ["paint_scene"]


def paint_scene(model: Any, layout: TableLayout) -> None:
    """Fill the wooden textures of a compiled scene."""
    _fill(model, "wood", paint_wood(layout.wood, np.random.default_rng(1)))
    _fill(model, "panel", paint_wood(layout.panel, np.random.default_rng(2)))


def _fill(model: Any, name: str, pixels: UInt8Array) -> None:
    index = model.texture(name).id
    start = int(model.tex_adr[index])
    model.tex_data[start : start + pixels.size] = pixels.ravel()
