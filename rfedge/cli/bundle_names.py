"""How commands take a bundle or a checkpoint: a folder, or the name of a policy that comes with rfedge."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

V = TypeVar("V", Path, list[Path], None)


def checkpoint_folder(value: Path | None) -> Path | None:
    """Return `value`, or the checkpoint of the shipped policy that it names."""
    from rfedge.policies import find_checkpoint

    return None if value is None else find_checkpoint(value)


def bundle_folder(value: V) -> V:
    """Return `value` with names of shipped policies replaced by their folders."""
    from rfedge.policies import find_bundle

    if isinstance(value, Path):
        return find_bundle(value)
    if isinstance(value, list):
        return [find_bundle(path) for path in value]
    return value
