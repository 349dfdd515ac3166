"""Which power meters this machine has, each under the name of what it measures.

A meter of the whole board stands alone, because all others are parts of it; the GPU's and the CPU packages' add nothing
twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from rfedge.machine.power.energy import Reading, WrappingCounter
from rfedge.machine.power.jetson_meters import JtopSource, TegrastatsSource
from rfedge.machine.probing import Absent, probe

_M: Final = 1e-3


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


class NvmlSource:
    """GPU 0: its energy counter (Volta and newer), else its power; Absent where it tells neither, as a Jetson's."""

    def __init__(self, nvml: Any = None) -> None:
        self._nvml, self._handle, name = open_gpu(nvml)
        self._counts_energy = self._can(self._nvml.nvmlDeviceGetTotalEnergyConsumption)
        try:
            self.read()
        except Absent:
            self.close()
            raise
        self.name: Final = f"GPU ({name}) by NVML"

    def read(self) -> Reading:
        try:
            if self._counts_energy:
                return Reading(energy_j=self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) * _M)
            return Reading(power_w=self._nvml.nvmlDeviceGetPowerUsage(self._handle) * _M)
        except self._nvml.NVMLError as error:
            raise Absent(f"NVML: {error}") from None

    def temperatures_c(self) -> dict[str, float]:
        try:
            die_c = self._nvml.nvmlDeviceGetTemperature(self._handle, self._nvml.NVML_TEMPERATURE_GPU)
        except self._nvml.NVMLError:
            return {}
        return {"GPU die (NVML)": float(die_c)}

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _can(self, ask: Any) -> bool:
        try:
            ask(self._handle)
        except self._nvml.NVMLError:
            return False
        return True


def open_gpu(nvml: Any = None) -> tuple[Any, Any, str]:
    """Return NVML, which the caller shuts down, GPU 0 and its name; raises Absent."""
    if nvml is None:
        try:
            import pynvml as nvml  # type: ignore[import-not-found,import-untyped,no-redef,unused-ignore]
        except ImportError:
            raise Absent("NVML: nvidia-ml-py is not installed") from None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise Absent(f"NVML: {error}") from None
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
        return nvml, handle, text_of(nvml.nvmlDeviceGetName(handle))
    except nvml.NVMLError as error:
        nvml.nvmlShutdown()
        raise Absent(f"NVML: {error}") from None


def text_of(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value  # older NVML bindings return bytes


_FOLDER: Final = "sys/class/powercap"
# A top domain is one package; intel-rapl:0:0 is a part of it, and counting both would count twice.
_TOP_DOMAIN: Final = re.compile(r"intel-rapl:\d+")
_UJ_PER_J: Final = 1e6


class RaplSource:
    """Energy counters of Intel and AMD packages, added up; Absent where there are none or this user may not read them.

    Since Linux 5.10 only root reads `energy_uj`. Source: Linux, Documentation/power/powercap/powercap.rst.
    """

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
