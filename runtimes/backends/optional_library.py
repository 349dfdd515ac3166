"""Imports libraries that only some users have, and says in one line what is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from rfedge.errors import BackendUnavailableError


def import_optional(module: str, *, needed_for: str, remedy: str) -> ModuleType:
    """Import `module`; BackendUnavailableError where it, or something that it needs, is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = getattr(error, "name", None) or module
        raise BackendUnavailableError(
            needed_for, got=f"no module {missing!r}", expected=f"an installed {module}", remedy=remedy
        ) from None
