"""The 34 tasks in CALVIN's order and the one instruction each is evaluated with.

Source: CALVIN's task and validation annotation files; they are benchmark facts, so the wording and its capital letters
stay as they are. Wording for training lives in `rfedge.envs.language`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from rfedge.errors import one_of

COLOURS: Final = ("red", "blue", "pink")
# task -> evaluation instruction, in the order of the task ids 0 to 33
INSTRUCTIONS: Final[Mapping[str, str]] = MappingProxyType(json.loads(Path(__file__).with_suffix(".json").read_text()))
TASKS: Final = tuple(INSTRUCTIONS)


def check_task(task: str) -> str:
    """Return `task` when it is one of the 34; raises ConfigError, which proposes the nearest name."""
    return one_of(TASKS, task, "task", remedy="Choose one of them.")


def _kind(task: str) -> tuple[str, dict[str, Any]]:
    match task.split("_"):
        case ["rotate" | "push" as kind, colour, "block", side]:
            return kind, {"block": f"block_{colour}", "side": side}
        case ["lift", colour, "block", place]:
            return "lift", {"block": f"block_{colour}", "place": place}
        case ["move", "slider", side]:
            return "move_slider", {"side": side}
        case ["turn", on_or_off, light]:
            return "turn", {"light": light, "wanted": on_or_off == "on"}
    return task, {}


# task -> its kind, and which of its kind it is: block, side, place it lies in, or light and its wanted state
KINDS: Final = MappingProxyType({task: _kind(task) for task in TASKS})
