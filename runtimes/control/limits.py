"""Limits that whatever runs a policy shares; apart, because the command line shows them and loads no library for that."""

from __future__ import annotations

from typing import Final

__all__ = ["MAX_STEPS"]

MAX_STEPS: Final = 360  # control steps for one instruction, as in CALVIN's evaluation
