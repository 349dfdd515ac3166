"""Which NVIDIA GPU this machine has, asked of the driver itself.

The CUDA driver library is on every machine that can run an engine, Jetson included, where NVML is not; so this needs no
Python package.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rfedge.errors import BackendUnavailableError

_LIBRARY: Final = "libcuda.so.1"
# CUdevice_attribute of cuda.h
_MAJOR, _MINOR = 75, 76
_DRIVER_FILE: Final = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """One GPU."""

    name: str  # as the driver gives it, such as "Orin"
    sm: int  # compute capability as one number: 87 is 8.7
    cuda: str  # newest CUDA version the driver serves, such as "12.6"
    driver: str  # of the kernel driver
    memory_bytes: int  # on Jetson of the whole board


class CudaLibrary:
    """The driver library with its first GPU; every failed call raises BackendUnavailableError with CUDA's name for it."""

    def __init__(self, library: Any = None, *, without_driver: str, remedy: str) -> None:
        """Open `library`, `libcuda.so.1` without; `without_driver` is the remedy where there is none."""
        self._remedy = remedy
        try:
            self._library = library or ctypes.CDLL(_LIBRARY)
        except OSError:
            got, expected = f"no {_LIBRARY}", "an NVIDIA driver"
            raise BackendUnavailableError("CUDA", got=got, expected=expected, remedy=without_driver) from None
        self.call("cuInit", ctypes.c_uint(0))
        self.device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(self.device), ctypes.c_int(0))

    def call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status == 0:
            return
        name = ctypes.c_char_p()
        self._library.cuGetErrorName(ctypes.c_int(status), ctypes.byref(name))
        got = f"{function} with {name.value.decode() if name.value else f'status {status}'}"
        raise BackendUnavailableError("CUDA", got=got, expected="success", remedy=self._remedy)


def read_cuda_device(*, library: Any = None) -> CudaDevice:
    """Return the first GPU of the driver library `library`, `libcuda.so.1` without.

    Raises:
        BackendUnavailableError: no driver library, no such GPU, or the driver answers with an error.
    """
    without_driver = "Build on the device, or ahead of time with --target tensorrt-rtx --aot sm86."
    remedy = "See whether nvidia-smi (tegrastats on Jetson) lists the GPU."
    cuda = CudaLibrary(library, without_driver=without_driver, remedy=remedy)
    version, memory = ctypes.c_int(), ctypes.c_size_t()
    cuda.call("cuDriverGetVersion", ctypes.byref(version))
    attributes = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        cuda.call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), cuda.device)
        attributes.append(value.value)
    cuda.call("cuDeviceTotalMem_v2", ctypes.byref(memory), cuda.device)
    name = ctypes.create_string_buffer(256)
    cuda.call("cuDeviceGetName", name, ctypes.c_int(len(name)), cuda.device)
    return CudaDevice(
        name=name.value.decode(errors="replace"),
        sm=10 * attributes[0] + attributes[1],
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
        driver=_driver_version(),
        memory_bytes=memory.value,
    )


def _driver_version() -> str:
    if not _DRIVER_FILE.is_file():
        return "unknown"
    match = re.search(r"\b\d+\.\d+(?:\.\d+)?\b", _DRIVER_FILE.read_text())
    return match.group(0) if match else "unknown"
