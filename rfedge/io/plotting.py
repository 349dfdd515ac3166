"""Picture files by matplotlib, which the extra `plots` brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rfedge.errors import BackendUnavailableError
from rfedge.io.atomic import atomic_file


def has_matplotlib() -> bool:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def check_matplotlib(needed_for: str) -> None:
    """Raise BackendUnavailableError without matplotlib, before hours of work that would end in no picture."""
    if not has_matplotlib():
        remedy = "pip install 'rfedge[plots]'."
        raise BackendUnavailableError(needed_for, got="no matplotlib", expected="the 'plots' extra", remedy=remedy)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure whole or not at all; the file's ending names the format, PNG without one."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix.removeprefix(".") or "png")
