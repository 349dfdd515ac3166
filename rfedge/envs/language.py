"""Our own training paraphrases of the 34 tasks; none of them is an instruction that the benchmark evaluates with."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

import numpy as np

from rfedge.envs.tasks import COLOURS, TASKS, check_task

__all__ = ["PARAPHRASES", "sample_instruction"]

# Block families are written once and filled in for each colour and side.
_FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "rotate_{colour}_block_{side}": (
        "turn the {colour} block to the {side}",
        "rotate the {colour} block {side}wards",
        "grip the {colour} block and twist it {side}",
        "spin the {colour} block towards the {side}",
        "give the {colour} block a turn to the {side}",
        "hold the {colour} block and turn it {side}wards",
        "make the {colour} block face further {side}",
        "twist the {colour} block to the {side} on the spot",
        "rotate the block that is {colour} to the {side}",
        "turn that {colour} block a quarter to the {side}",
    ),
    "push_{colour}_block_{side}": (
        "slide the {colour} block to the {side}",
        "push the {colour} block towards the {side}",
        "shove the {colour} block {side}wards",
        "move the {colour} block to the {side} without lifting it",
        "nudge the {colour} block over to the {side}",
        "shift the {colour} block along the surface to the {side}",
        "make the {colour} block slide {side}",
        "bring the {colour} block further {side} by pushing",
        "push that {colour} block to the {side} side",
        "sweep the {colour} block {side}wards",
    ),
    "lift_{colour}_block_table": (
        "pick up the {colour} block from the table",
        "raise the {colour} block off the table",
        "take hold of the {colour} block and hoist it",
        "grab the {colour} block on the table and bring it up",
        "lift up the block that is {colour}",
        "get the {colour} block into the air",
        "hold the {colour} block and raise it",
        "fetch the {colour} block from the tabletop",
        "pick the {colour} block up",
        "close the gripper on the {colour} block and go up",
        "take the {colour} block off the tabletop",
        "grab the {colour} block and pull it upwards",
    ),
    "lift_{colour}_block_slider": (
        "pick up the {colour} block that lies in the cabinet",
        "reach into the cabinet and raise the {colour} block",
        "take the {colour} block out of the cabinet",
        "grab the {colour} block behind the sliding door",
        "get the {colour} block from the shelf",
        "raise the {colour} block from the cabinet floor",
        "fetch the {colour} block from behind the door",
        "hoist the {colour} block in the cabinet",
        "grip the {colour} block on the shelf and lift",
        "pick the {colour} block up inside the cabinet",
    ),
    "lift_{colour}_block_drawer": (
        "pick up the {colour} block that lies in the drawer",
        "reach into the drawer and raise the {colour} block",
        "lift the {colour} block out of the drawer",
        "grab the {colour} block inside the drawer",
        "get the {colour} block out of the open drawer",
        "fetch the {colour} block from the drawer",
        "raise the {colour} block from the drawer's bottom",
        "hoist the {colour} block out of the drawer",
        "grip the {colour} block in the drawer and go up",
        "pick the {colour} block up from inside the drawer",
    ),
    "move_slider_{side}": (
        "slide the door to the {side}",
        "move the sliding door {side}wards",
        "shift the cabinet door to the {side}",
        "drag the door handle towards the {side}",
        "pull the slider over to the {side}",
        "get the sliding door to the {side}",
        "make the door of the cabinet go {side}",
        "grab the door and slide it {side}",
        "bring the slider to the {side}",
        "run the cabinet's door along to the {side}",
        "take the door handle and move it {side}",
        "the sliding door should be on the {side}",
    ),
}
_SINGLE: Final[dict[str, tuple[str, ...]]] = {
    "open_drawer": (
        "open the drawer",
        "pull the drawer out",
        "draw the drawer open by its handle",
        "grab the handle and pull the drawer towards you",
        "slide the drawer out",
        "get the drawer open",
        "pull out the drawer under the table",
        "tug on the handle until the drawer is open",
        "make the drawer come out",
        "the drawer should be open",
        "hook the handle and draw it out",
        "open up the drawer below",
    ),
    "close_drawer": (
        "close the drawer",
        "push the drawer in",
        "shut the drawer",
        "slide the drawer back under the table",
        "shove the drawer closed",
        "get the drawer closed",
        "press the handle until the drawer is shut",
        "push the open drawer back in",
        "make the drawer go in",
        "the drawer should be closed",
        "move the drawer back inside",
        "shut the drawer below the table",
    ),
    "place_in_slider": (
        "put the block you hold into the cabinet",
        "set the held block down behind the sliding door",
        "drop the block in the cabinet",
        "leave the block on the cabinet shelf",
        "put what you hold on the shelf",
        "place the block inside the cabinet",
        "let go of the block in the cabinet",
        "bring the block into the cabinet and release it",
        "lay the held block on the cabinet floor",
        "the block belongs in the cabinet",
    ),
    "place_in_drawer": (
        "put the block you hold into the drawer",
        "set the held block down in the drawer",
        "drop the block into the open drawer",
        "leave the block in the drawer",
        "let go of the block over the drawer",
        "place the block inside the drawer",
        "bring the block to the drawer and release it",
        "lay what you hold in the drawer",
        "release the block above the drawer",
        "the block belongs in the drawer",
    ),
    "stack_block": (
        "put the block you hold on top of another one",
        "set the held block down on another block",
        "pile the block onto another",
        "build a tower with the block in the gripper",
        "place the held block on top of a second block",
        "stack the block on another one",
        "make a stack with what you hold",
        "lay the block upon another block",
        "balance the held block on a block",
        "the block should rest on another block",
    ),
    "unstack_block": (
        "take the top block off the stack",
        "pull the upper block from the lower one",
        "undo the stack of blocks",
        "take the tower of blocks apart",
        "get the block off the other block",
        "knock down the stack",
        "separate the two stacked blocks",
        "lift the upper block off the pile",
        "clear the block from the top",
        "no block should rest on another",
    ),
    "turn_on_lightbulb": (
        "switch on the bulb",
        "turn on the yellow light",
        "flip the switch up so that the bulb glows",
        "push the lever up",
        "move the switch upwards to light the bulb",
        "make the light bulb shine",
        "get the bulb lit with the lever",
        "slide the green switch up",
        "light up the bulb",
        "raise the lever until the bulb is on",
        "toggle the switch for the bulb on",
        "the bulb should be on",
    ),
    "turn_off_lightbulb": (
        "switch off the bulb",
        "turn off the yellow light",
        "flip the switch down so that the bulb goes dark",
        "push the lever down",
        "move the switch downwards to put out the bulb",
        "make the light bulb go out",
        "get the bulb dark with the lever",
        "slide the green switch down",
        "put out the bulb",
        "lower the lever until the bulb is off",
        "toggle the switch for the bulb off",
        "the bulb should be off",
    ),
    "turn_on_led": (
        "switch on the led",
        "turn on the green light",
        "press the button so that the led glows",
        "push down the button to light the led",
        "hit the button to get the green light",
        "make the led shine",
        "get the led lit with the button",
        "tap the orange button until the led is on",
        "light up the led",
        "press down on the button for the green lamp",
        "use the button to switch the led on",
        "the led should be on",
    ),
    "turn_off_led": (
        "switch off the led",
        "turn off the green light",
        "press the button so that the led goes dark",
        "push down the button to put out the led",
        "hit the button to lose the green light",
        "make the led go out",
        "get the led dark with the button",
        "tap the orange button until the led is off",
        "put out the led",
        "press down on the button to end the green lamp",
        "use the button to switch the led off",
        "the led should be off",
    ),
    "push_into_drawer": (
        "push a block off the table into the drawer",
        "sweep the block over the edge into the drawer",
        "shove the block so that it lands in the drawer",
        "slide the block over the edge and into the drawer",
        "make the block drop into the drawer by pushing",
        "nudge the block until it falls in the drawer",
        "let the block tumble into the open drawer",
        "push the block on the table down into the drawer",
        "move the block into the drawer without lifting it",
        "the block should fall into the drawer",
    ),
}


def _paraphrases() -> dict[str, tuple[str, ...]]:
    table = dict(_SINGLE)
    for name, sentences in _FAMILIES.items():
        for colour in COLOURS:
            for side in ("left", "right"):
                filled = tuple(sentence.format(colour=colour, side=side) for sentence in sentences)
                table[name.format(colour=colour, side=side)] = filled
    return {task: table[task] for task in TASKS}


# task -> at least ten ways to say it
PARAPHRASES: Final = MappingProxyType(_paraphrases())


def sample_instruction(task: str, rng: np.random.Generator) -> str:
    """Return one of the task's paraphrases.

    Raises:
        ConfigError: the task is not one of the 34.
    """
    sentences = PARAPHRASES[check_task(task)]
    return sentences[int(rng.integers(len(sentences)))]
