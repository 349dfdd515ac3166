"""Which script does which task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from rfedge.envs.experts import furniture, handling, placing
from rfedge.envs.experts.engine import Expert
from rfedge.envs.experts.script import Script
from rfedge.envs.playtable.layout import TableLayout, find_layout
from rfedge.envs.tasks import KINDS, check_task


def _turn(layout: TableLayout, *, light: str, wanted: bool) -> Script:
    if light == "led":
        return furniture.press_button(layout)
    return furniture.turn_on_lightbulb(layout) if wanted else furniture.turn_off_lightbulb(layout)


# kind of task -> its script, called with the words of `rfedge.envs.tasks.KINDS`
_SCRIPTS: Final[dict[str, Callable[..., Script]]] = {
    "rotate": handling.rotate,
    "push": handling.push,
    "lift": handling.lift,
    "turn": _turn,
    "move_slider": furniture.move_slider,
    "open_drawer": furniture.open_drawer,
    "close_drawer": furniture.close_drawer,
    "place_in_slider": placing.place_in_slider,
    "place_in_drawer": placing.place_in_drawer,
    "stack_block": placing.stack,
    "unstack_block": placing.unstack,
    "push_into_drawer": handling.push_into_drawer,
}
EXPERT_TASKS: Final = tuple(task for task, (kind, _) in KINDS.items() if kind in _SCRIPTS)


def make_expert(task: str, scene: str, rng: np.random.Generator) -> Expert:
    """Make the expert of `task` in `scene`, with speed and offsets from `rng`; raises ConfigError for unknown names."""
    layout = find_layout(scene)
    kind, words = KINDS[check_task(task)]
    return Expert(_SCRIPTS[kind](layout, **words), layout, rng)
