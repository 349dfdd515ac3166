"""The policies that come with rfedge: int8 bundles that do PlayTable's tasks, each with a model card beside it.

rfedge/policies/<name>/bundle/          what `rfedge export` wrote
                       MODEL_CARD.md    what it is, how it was trained, what was measured, what it is not for
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["CLOSED_LOOP", "JUMP_STEP", "SHIPPED", "default_bundle", "find_bundle", "shipped_name"]

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


def shipped_name(folder: Path) -> str | None:
    """Return the name of the shipped policy whose bundle lies in `folder`; None for any other bundle.

    >>> shipped_name(find_bundle(Path("playtable-jump-step")))
    'playtable-jump-step'
    >>> shipped_name(Path("out/bundle")) is None
    True
    """
    folder = folder.resolve()
    return next((name for name in SHIPPED if folder == Path(__file__).resolve().parent / name / "bundle"), None)


def default_bundle(mode: str) -> Path:
    """Return the bundle that runs where none is named: the one that was trained for `mode`."""
    return find_bundle(Path(JUMP_STEP if mode == "jump-step" else CLOSED_LOOP))
