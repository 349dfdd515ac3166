"""Which script does which task."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

import numpy as np

from rfedge.envs.experts import furniture, handling, placing
from rfedge.envs.experts.engine import Expert
from rfedge.envs.experts.script import Script
from rfedge.envs.playtable.layout import TableLayout, find_layout
from rfedge.envs.tasks import COLOURS, TASKS, check_task


def _scripts() -> dict[str, Callable[[TableLayout], Script]]:
    bind = functools.partial
    table: dict[str, Callable[[TableLayout], Script]] = {
        "open_drawer": furniture.open_drawer,
        "close_drawer": furniture.close_drawer,
        "turn_on_lightbulb": furniture.turn_on_lightbulb,
        "turn_off_lightbulb": furniture.turn_off_lightbulb,
        "turn_on_led": furniture.press_button,
        "turn_off_led": furniture.press_button,
        "place_in_slider": placing.place_in_slider,
        "place_in_drawer": placing.place_in_drawer,
        "stack_block": placing.stack,
        "unstack_block": placing.unstack,
        "push_into_drawer": handling.push_into_drawer,
    }
    for side in ("left", "right"):
        to_left = side == "left"
        table[f"move_slider_{side}"] = bind(furniture.move_slider, to_left=to_left)
        for colour in COLOURS:
            table[f"rotate_{colour}_block_{side}"] = bind(handling.rotate, name=f"block_{colour}", to_left=to_left)
            table[f"push_{colour}_block_{side}"] = bind(handling.push, block=f"block_{colour}", to_left=to_left)
    for colour in COLOURS:
        for place in ("table", "slider", "drawer"):
            table[f"lift_{colour}_block_{place}"] = bind(handling.lift, block=f"block_{colour}")
    return {task: table[task] for task in TASKS}


_SCRIPTS: Final = _scripts()
EXPERT_TASKS: Final = tuple(_SCRIPTS)


def make_expert(task: str, scene: str, rng: np.random.Generator) -> Expert:
    """Make the expert of `task` in `scene`, with speed and offsets from `rng`; raises ConfigError for unknown names."""
    layout = find_layout(scene)
    return Expert(_SCRIPTS[check_task(task)](layout), layout, rng)
