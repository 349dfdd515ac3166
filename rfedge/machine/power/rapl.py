"""Energy of CPU packages from RAPL, the counters of Intel and AMD processors under /sys/class/powercap.

Since Linux 5.10 only root reads `energy_uj`. Source: Linux, Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from rfedge.machine.power.energy import Reading, WrappingCounter
from rfedge.machine.probing import Absent

_FOLDER: Final = "sys/class/powercap"
# A top domain is one package; intel-rapl:0:0 is a part of it, and counting both would count twice.
_TOP_DOMAIN: Final = re.compile(r"intel-rapl:\d+")
_UJ_PER_J: Final = 1e6


class RaplSource:
    """The packages' counters, added up; Absent where there are none or this user may not read them."""

    def __init__(self, root: Path = Path("/")) -> None:
        folder = root / _FOLDER
        domains = [path for path in sorted(folder.glob("intel-rapl:*")) if _TOP_DOMAIN.fullmatch(path.name)]
        named = {path: _read(path / "name") for path in domains}
        packages = [path for path, name in named.items() if name.startswith("package")]
        if not packages:
            raise Absent("no RAPL counters under /sys/class/powercap")
        self._counters = {
            path / "energy_uj": WrappingCounter(int(_read(path / "max_energy_range_uj")) + 1) for path in packages
        }
        several = f"{len(packages)} CPU packages" if len(packages) > 1 else "CPU package"
        self.name: Final = f"{several} by RAPL"
        self.read()

    def read(self) -> Reading:
        return Reading(energy_j=sum(counter.add(int(_read(path))) for path, counter in self._counters.items()) / _UJ_PER_J)

    def temperatures_c(self) -> dict[str, float]:
        """RAPL knows none."""
        return {}

    def close(self) -> None:
        """Nothing is open."""


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except PermissionError:
        raise Absent(f"only root reads /sys/class/powercap/{path.parent.name}/{path.name}") from None
    except OSError as error:
        raise Absent(f"RAPL: {path.name}: {error.strerror}") from None
