"""Temperatures that the kernel tells: thermal zones (all a Jetson needs) and hardware monitors."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rfedge.machine.probing import read_text

_MILLI: Final = 1e-3


class KernelThermometers:
    """Every temperature file there is; found once, then only read.

    Args:
        root: the file system to look in.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._files: dict[str, Path] = {}
        for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
            self._add(read_text(zone / "type") or zone.name, zone / "temp")
        for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
            chip = read_text(monitor / "name") or monitor.name
            for file in sorted(monitor.glob("temp*_input")):
                label = read_text(file.with_name(file.name.replace("_input", "_label")))
                self._add(f"{chip} {label}".strip(), file)

    def read(self) -> dict[str, float]:
        """Return degrees Celsius by name; a sensor of a part without power tells nothing and is left out."""
        texts = {name: read_text(path) for name, path in self._files.items()}
        return {name: int(text) * _MILLI for name, text in texts.items() if text.lstrip("-").isdigit()}

    def _add(self, name: str, path: Path) -> None:
        unique, number = name, 2
        while unique in self._files:
            unique, number = f"{name} #{number}", number + 1
        self._files[unique] = path
