"""How commands take a bundle: a folder, or the name of a policy that comes with rfedge."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

__all__ = ["bundle_folder"]

V = TypeVar("V", Path, list[Path], None)


def bundle_folder(value: V) -> V:
    """Return `value` with names of shipped policies replaced by their folders."""
    from rfedge.policies import find_bundle

    if isinstance(value, Path):
        return find_bundle(value)
    if isinstance(value, list):
        return [find_bundle(path) for path in value]
    return value
