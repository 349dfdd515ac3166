"""The policies that come with rfedge and do PlayTable's tasks: checkpoint, int8 bundle and model card.

rfedge/policies/<name>/checkpoint/      what was trained, stored in 16 bits: any precision can be exported of it
                       bundle/          what `rfedge export --precision int8` made of it
                       MODEL_CARD.md    what it is, how it was trained, what was measured, what it is not for
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Final

from rfedge.errors import ArtifactError

__all__ = [
    "CLOSED_LOOP",
    "FOLDER",
    "JUMP_STEP",
    "SHIPPED",
    "bundle_name",
    "default_bundle",
    "find_bundle",
    "find_checkpoint",
    "is_shipped",
]

CLOSED_LOOP: Final = "playtable-closed-loop"
JUMP_STEP: Final = "playtable-jump-step"
SHIPPED: Final = (CLOSED_LOOP, JUMP_STEP)
FOLDER = Path(__file__).parent


def is_shipped(path: Path) -> bool:
    """Whether `path` names a shipped policy and nothing of that name lies here; raises ArtifactError for a near miss.

    >>> is_shipped(Path("playtable-jump-step")), is_shipped(Path("out/bundle"))
    (True, False)
    """
    if path.exists():
        return False
    if str(path) not in SHIPPED and (near := difflib.get_close_matches(str(path), SHIPPED, n=1, cutoff=0.8)):
        raise ArtifactError(str(path), got="no such folder", expected="a bundle", remedy=f"Did you mean {near[0]}?")
    return str(path) in SHIPPED


def find_bundle(path: Path) -> Path:
    """Return the bundle folder that `path` names: a shipped policy by its name alone, anything else is a path.

    >>> find_bundle(Path("playtable-jump-step")).name, find_bundle(Path("out/bundle")).as_posix()
    ('bundle', 'out/bundle')
    """
    return FOLDER / path / "bundle" if is_shipped(path) else path


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint folder that `path` names, as `find_bundle` does; raises ArtifactError where there is none."""
    if not is_shipped(path):
        return path
    folder = FOLDER / path / "checkpoint"
    if not folder.is_dir():
        raise ArtifactError(
            f"policy {path}", got="no checkpoint", expected=f"one in {folder}", remedy="Name a checkpoint folder."
        )
    return folder


def bundle_name(folder: Path) -> str:
    """Return what records call a bundle or checkpoint: its folder, or the name of the shipped policy that it is of.

    >>> bundle_name(find_bundle(Path("playtable-jump-step"))), bundle_name(Path("out/bundle"))
    ('playtable-jump-step', 'out/bundle')
    """
    installed = {(FOLDER / name / part).resolve(): name for name in SHIPPED for part in ("bundle", "checkpoint")}
    return installed.get(folder.resolve(), str(folder))


def default_bundle(mode: str | None) -> Path:
    """Return the bundle that runs where none is named: the one that was trained for `mode`, or without one closed loop."""
    return find_bundle(Path(JUMP_STEP if mode == "jump-step" else CLOSED_LOOP))
