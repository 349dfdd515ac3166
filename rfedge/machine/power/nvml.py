"""Power and temperature of an NVIDIA GPU from NVML, the library of its driver (Python package nvidia-ml-py)."""

from __future__ import annotations

from typing import Any, Final

from rfedge.machine.power.energy import Reading
from rfedge.machine.probing import Absent

_M: Final = 1e-3


class NvmlSource:
    """GPU 0: its energy counter (Volta and newer), else its power; Absent where it tells neither, as a Jetson's."""

    def __init__(self, nvml: Any = None) -> None:
        self._nvml: Any = nvml or _import()
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise Absent(f"NVML: {error}") from None
        try:
            self._handle = self._nvml.nvmlDeviceGetHandleByIndex(0)
            name = self._nvml.nvmlDeviceGetName(self._handle)
            self._counts_energy = self._can(self._nvml.nvmlDeviceGetTotalEnergyConsumption)
            if not self._counts_energy:
                self._nvml.nvmlDeviceGetPowerUsage(self._handle)
        except self._nvml.NVMLError as error:
            self.close()
            raise Absent(f"NVML: {error}") from None
        name = name.decode(errors="replace") if isinstance(name, bytes) else name
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


def _import() -> Any:
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise Absent("NVML: nvidia-ml-py is not installed") from None
    return pynvml
