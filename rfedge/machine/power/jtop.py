"""Power and temperature of a Jetson from the service of jetson-stats, where it is installed and runs.

Its own total adds up every rail of a board whose input rail it does not know, so the rails are chosen here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rfedge.errors import first_line
from rfedge.machine.power.board_power import board_power_w, choose_rails
from rfedge.machine.power.energy import Reading
from rfedge.machine.probing import Absent


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
