"""Which of a Jetson's power rails are the whole board, or the whole module where no rail is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from rfedge.machine.probing import Absent

# A rail at the supply: Thor; Orin Nano and NX, Xavier NX; Nano and TX2.
_INPUT_RAILS: Final = ("VIN", "VDD_IN", "POM_5V_IN")
# AGX Orin has no such rail. These three are what JetPack 7.2 prints of it; the memory rail VDDQ_VDD2_1V8AO, which older
# releases print too, is not among them.
_AGX_ORIN_RAILS: Final = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
# What older boards without an input rail (AGX Xavier) call theirs.
_AGX_XAVIER_RAILS: Final = ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")


def choose_rails(names: Collection[str]) -> tuple[str, ...]:
    """Return the rails whose sum is the board's power: one at the supply, or the parts that there are."""
    for rail in _INPUT_RAILS:
        if rail in names:
            return (rail,)
    for rails in (_AGX_ORIN_RAILS, _AGX_XAVIER_RAILS):
        if all(rail in names for rail in rails):
            return rails
    raise Absent(f"no power rail that is known among {', '.join(names) or 'none'}")


def board_power_w(rails_mw: Mapping[str, float], chosen: Collection[str]) -> float:
    missing = [rail for rail in chosen if rail not in rails_mw]
    if missing:
        raise Absent(f"no more readings of {missing[0]}")
    return sum(rails_mw[rail] for rail in chosen) / 1e3
