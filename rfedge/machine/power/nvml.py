"""Power and temperature of an NVIDIA GPU from NVML, the library of its driver (Python package nvidia-ml-py)."""

from __future__ import annotations

from typing import Any, Final

from rfedge.machine.power.energy import Reading
from rfedge.machine.probing import Absent

_M: Final = 1e-3


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
