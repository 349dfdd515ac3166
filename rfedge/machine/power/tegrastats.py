"""Power and temperature of a Jetson from `tegrastats`, which JetPack installs and any user may run.

A line is read as NVIDIA's guide describes it (Jetson Linux, Tegrastats Utility). A rail reads `NAME now/average`, since
JetPack 7.2 with the highest behind it, in mW; releases before 35 leave the unit out.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rfedge.machine.power.board_power import board_power_w, choose_rails
from rfedge.machine.power.energy import Reading
from rfedge.machine.probing import Absent

_RAIL: Final = re.compile(r"\b([A-Z][A-Z0-9_]*) (-?\d+)(?:mW(?:/-?\d+mW)*|/-?\d+)(?=\s|$)")
_TEMPERATURE: Final = re.compile(r"\b(\w+)@(-?\d+(?:\.\d+)?)C\b")
_ABSENT_C: Final = -256.0  # what a sensor of a part without power reads
_LEAST_INTERVAL_MS: Final = 100
_START_TIMEOUT_S: Final = 3.0
_SILENT_INTERVALS: Final = 10


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
    """A `tegrastats` process of our own, asked every `period_s` and not below 0.1 s, and the last line that it printed.

    Raises Absent if it is not on this machine, or prints no rail that is the board's in time.
    """

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
