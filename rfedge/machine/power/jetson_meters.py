"""Power and temperature of a Jetson's whole board: from the service of jetson-stats, else from `tegrastats`.

jtop's own total adds up every rail of a board whose input rail it does not know, so the rails are chosen here.
`tegrastats` comes with JetPack, and any user may run it. A line is read as NVIDIA's guide describes it (Jetson Linux,
Tegrastats Utility). A rail reads `NAME now/average`, since JetPack 7.2 with the highest behind it, in mW; releases before 35
leave the unit out.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rfedge.errors import first_line
from rfedge.machine.power.energy import Reading
from rfedge.machine.probing import Absent

# A rail at the supply: Thor; Orin Nano and NX, Xavier NX; Nano and TX2.
_INPUT_RAILS: Final = ("VIN", "VDD_IN", "POM_5V_IN")
# AGX Orin has no such rail. These three are what JetPack 7.2 prints of it; the memory rail VDDQ_VDD2_1V8AO, which older
# releases print too, is not among them.
_AGX_ORIN_RAILS: Final = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
# What older boards without an input rail (AGX Xavier) call theirs.
_AGX_XAVIER_RAILS: Final = ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")
_RAIL: Final = re.compile(r"\b([A-Z][A-Z0-9_]*) (-?\d+)(?:mW(?:/-?\d+mW)*|/-?\d+)(?=\s|$)")
_TEMPERATURE: Final = re.compile(r"\b(\w+)@(-?\d+(?:\.\d+)?)C\b")
_ABSENT_C: Final = -256.0  # what a sensor of a part without power reads
_LEAST_INTERVAL_MS: Final = 100
_START_TIMEOUT_S: Final = 3.0
_SILENT_INTERVALS: Final = 10


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


class JtopSource:
    """A client of the service, asked every `period_s`; Absent where it does not answer or knows no rail of the board's."""

    def __init__(self, period_s: float, jtop: Any = None) -> None:
        self._client: Any = (jtop or _import())(interval=period_s)
        try:
            self._client.start()
        except Exception as error:  # its errors share no base that may be named without it
            raise Absent(f"jtop: {first_line(error)}") from None
        try:
            self._client.ok()  # waits for the first readings
            self._rails = choose_rails(rails_of(self._client.power))
        except BaseException:
            self.close()
            raise
        self.name: Final = f"board, {' + '.join(self._rails)} by jtop"

    def read(self) -> Reading:
        if not self._client.ok(spin=True):
            raise Absent("the service of jtop is gone")
        return Reading(power_w=board_power_w(rails_of(self._client.power), self._rails))

    def temperatures_c(self) -> dict[str, float]:
        return {f"{name} (jtop)": celsius for name, celsius in zones_of(self._client.temperature).items()}

    def close(self) -> None:
        self._client.close()


def rails_of(power: Mapping[str, Any]) -> dict[str, float]:
    """Return mW by rail from `jtop().power`: the rails, and the total where it is a rail of its own ("VDD_IN")."""
    rails = {str(name): float(values["power"]) for name, values in dict(power.get("rail") or {}).items()}
    total = dict(power.get("tot") or {})
    if total.get("name"):
        rails[str(total["name"])] = float(total["power"])
    return rails


def zones_of(temperature: Mapping[str, Any]) -> dict[str, float]:
    """Return degrees Celsius by zone from `jtop().temperature`."""
    return {str(name): float(values["temp"]) for name, values in dict(temperature).items() if values.get("online", True)}


def _import() -> Any:
    try:
        from jtop import jtop  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise Absent("jtop: jetson-stats is not installed") from None
    return jtop


@dataclass(frozen=True, slots=True)
class TegrastatsLine:
    rails_mw: dict[str, float]  # power now, by rail
    temperatures_c: dict[str, float]  # by zone; those that read nothing are left out


def parse_tegrastats(line: str) -> TegrastatsLine:
    """Read one line; what it does not hold is empty."""
    # Memory reads `RAM 974/7620MB` and is no rail: its unit follows, so that the pattern does not match it.
    rails = {name: float(now_mw) for name, now_mw in _RAIL.findall(line)}
    zones = {name: float(celsius) for name, celsius in _TEMPERATURE.findall(line)}
    return TegrastatsLine(rails, {name: celsius for name, celsius in zones.items() if celsius > _ABSENT_C})


class TegrastatsSource:
    """A `tegrastats` process of our own, asked every `period_s`, not below 0.1 s; Absent where it prints no rail in time."""

    def __init__(self, period_s: float, command: Sequence[str] = ("tegrastats",)) -> None:
        interval_ms = max(_LEAST_INTERVAL_MS, round(1000 * period_s))
        self._timeout_s = _SILENT_INTERVALS * interval_ms / 1000
        self._line = TegrastatsLine({}, {})
        self._line_time_s = 0.0
        self._has_line = threading.Event()
        try:
            self._process = subprocess.Popen(
                [*command, "--interval", str(interval_ms)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
            )
        except OSError:
            raise Absent(f"no {command[0]} command") from None
        self._reader = threading.Thread(target=self._follow, name="tegrastats", daemon=True)
        self._reader.start()
        try:
            self._has_line.wait(_START_TIMEOUT_S)
            self._rails = choose_rails(self._line.rails_mw)
        except BaseException:
            self.close()
            raise
        self.name: Final = f"board, {' + '.join(self._rails)} by tegrastats"

    def read(self) -> Reading:
        if time.monotonic() - self._line_time_s > self._timeout_s:
            raise Absent("tegrastats fell silent")
        return Reading(power_w=board_power_w(self._line.rails_mw, self._rails))

    def temperatures_c(self) -> dict[str, float]:
        return {f"{name} (tegrastats)": celsius for name, celsius in self._line.temperatures_c.items()}

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=2)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            self._line = parse_tegrastats(text)
            self._line_time_s = time.monotonic()
            self._has_line.set()
        self._has_line.set()  # it ended: whoever waits finds no rails
