"""Which power meters this machine has, each under the name of what it measures.

A meter of the whole board stands alone, because all others are parts of it; the GPU's and the CPU packages' add nothing
twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from rfedge.machine.power.energy import Reading
from rfedge.machine.power.jetson_meters import JtopSource, TegrastatsSource
from rfedge.machine.power.nvml import NvmlSource
from rfedge.machine.power.rapl import RaplSource
from rfedge.machine.probing import probe


class PowerSource(Protocol):
    """A meter; opened when it is made."""

    @property
    def name(self) -> str:
        """The measured part, and its sensor."""

    def read(self) -> Reading:
        """Return what it shows now; raises Absent when it no longer shows anything."""

    def temperatures_c(self) -> dict[str, float]:
        """Return the temperatures that come with it, by name."""

    def close(self) -> None:
        """Let go of it."""


def find_power_sources(period_s: float, root: Path = Path("/")) -> tuple[list[PowerSource], list[str]]:
    """Open every meter that adds something, to be read every `period_s`; return them, and why there are no more."""
    boards = (lambda: JtopSource(period_s), lambda: TegrastatsSource(period_s))
    board, why_no_board = _open(boards, enough=1)
    if board:
        return board, []
    parts, why_no_part = _open((NvmlSource, lambda: RaplSource(root)), enough=2)
    # That a workstation is no Jetson is news only where nothing else is readable either.
    return parts, why_no_part if parts else why_no_board + why_no_part


def _open(makers: Sequence[Callable[[], PowerSource]], *, enough: int) -> tuple[list[PowerSource], list[str]]:
    sources: list[PowerSource] = []
    reasons: list[str] = []
    for make in makers:
        if len(sources) < enough:
            found = probe(make)
            if found.value is None:
                reasons.append(found.reason)
            else:
                sources.append(found.value)
    return sources, reasons
