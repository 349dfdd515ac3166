"""The 34 tasks in CALVIN's order and the one instruction each is evaluated with.

Source: CALVIN's task and validation annotation files; they are benchmark facts, so the wording and its capital letters
stay as they are. Wording for training lives in `rfedge.envs.language`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from rfedge.errors import ConfigError, did_you_mean

COLOURS: Final = ("red", "blue", "pink")


def _instructions() -> dict[str, str]:
    table: dict[str, str] = {}
    for colour in COLOURS:
        for side in ("right", "left"):
            table[f"rotate_{colour}_block_{side}"] = f"take the {colour} block and rotate it to the {side}"
    for colour in COLOURS:
        for side in ("right", "left"):
            table[f"push_{colour}_block_{side}"] = f"go push the {colour} block {side}"
    table["move_slider_left"] = "push the sliding door to the left side"
    table["move_slider_right"] = "push the sliding door to the right side"
    table["open_drawer"] = "pull the handle to open the drawer"
    table["close_drawer"] = "push the handle to close the drawer"
    for colour in COLOURS:
        table[f"lift_{colour}_block_table"] = f"grasp and lift the {colour} block"
        table[f"lift_{colour}_block_slider"] = f"lift the {colour} block from the sliding cabinet"
        table[f"lift_{colour}_block_drawer"] = f"Take the {colour} block from the drawer"
    table["place_in_slider"] = "store the grasped block in the sliding cabinet"
    table["place_in_drawer"] = "store the grasped block in the drawer"
    table["stack_block"] = "stack the grasped block"
    table["unstack_block"] = "remove the stacked block"
    table["turn_on_lightbulb"] = "use the switch to turn on the light bulb"
    table["turn_off_lightbulb"] = "use the switch to turn off the light bulb"
    table["turn_on_led"] = "press the button to turn on the led light"
    table["turn_off_led"] = "press the button to turn off the led light"
    table["push_into_drawer"] = "slide the block that it falls into the drawer"
    return table


# task -> evaluation instruction, in the order of the task ids 0 to 33
INSTRUCTIONS: Final = MappingProxyType(_instructions())
TASKS: Final = tuple(INSTRUCTIONS)


def check_task(task: str) -> str:
    """Return `task` when it is one of the 34.

    Raises:
        ConfigError: it is not; the text proposes the nearest name.
    """
    if task not in INSTRUCTIONS:
        raise ConfigError("task", got=repr(task), expected=did_you_mean(task, TASKS), remedy="Choose one of them.")
    return task
