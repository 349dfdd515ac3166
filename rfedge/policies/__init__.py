"""The policies that come with rfedge: int8 bundles that do PlayTable's tasks, each with a model card beside it.

rfedge/policies/<name>/bundle/          what `rfedge export` wrote
                       MODEL_CARD.md    what it is, how it was trained, what was measured, what it is not for
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["CLOSED_LOOP", "JUMP_STEP", "SHIPPED", "bundle_name", "default_bundle", "find_bundle"]

CLOSED_LOOP: Final = "playtable-closed-loop"
JUMP_STEP: Final = "playtable-jump-step"
SHIPPED: Final = (CLOSED_LOOP, JUMP_STEP)


def find_bundle(path: Path) -> Path:
    """Return the bundle folder that `path` names: a shipped policy by its name alone, anything else is a path.

    >>> find_bundle(Path("playtable-jump-step")).name
    'bundle'
    >>> find_bundle(Path("out/bundle")).as_posix()
    'out/bundle'
    """
    if str(path) in SHIPPED and not path.exists():
        return Path(__file__).parent / str(path) / "bundle"
    return path


def bundle_name(folder: Path) -> str:
    """Return what records call a bundle: its folder, or the name of a shipped policy wherever that is installed.

    >>> bundle_name(find_bundle(Path("playtable-jump-step")))
    'playtable-jump-step'
    >>> bundle_name(Path("out/bundle"))
    'out/bundle'
    """
    installed = {Path(__file__).resolve().parent / name / "bundle": name for name in SHIPPED}
    return installed.get(folder.resolve(), str(folder))


def default_bundle(mode: str | None) -> Path:
    """Return the bundle that runs where none is named: the one that was trained for `mode`, or without one closed loop."""
    return find_bundle(Path(JUMP_STEP if mode == "jump-step" else CLOSED_LOOP))
