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


def read_cuda_device(ordinal: int = 0, *, library: Any = None) -> CudaDevice:
    """Return GPU number `ordinal` of the driver library `library`, `libcuda.so.1` without.

    Raises:
        BackendUnavailableError: no driver library, no such GPU, or the driver answers with an error.
    """
    if library is None:
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError:
            raise BackendUnavailableError(
                "CUDA device",
                got=f"no {_LIBRARY}",
                expected="an NVIDIA driver",
                remedy="Build on the device, or ahead of time with --target tensorrt-rtx --aot sm86.",
            ) from None
    _call(library, "cuInit", ctypes.c_uint(0))
    version, device, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    _call(library, "cuDriverGetVersion", ctypes.byref(version))
    _call(library, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
    attributes = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        _call(library, "cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), device)
        attributes.append(value.value)
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    name = ctypes.create_string_buffer(256)
    _call(library, "cuDeviceGetName", name, ctypes.c_int(len(name)), device)
    return CudaDevice(
        name=name.value.decode(errors="replace"),
        sm=10 * attributes[0] + attributes[1],
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
        driver=_driver_version(),
        memory_bytes=memory.value,
    )


def _call(library: Any, function: str, *arguments: Any) -> None:
    status = getattr(library, function)(*arguments)
    if status != 0:
        raise BackendUnavailableError(
            "CUDA device",
            got=f"{function} with status {status}",
            expected="a GPU the driver can open",
            remedy="See whether nvidia-smi (tegrastats on Jetson) lists it.",
        )


def _driver_version() -> str:
    if not _DRIVER_FILE.is_file():
        return "unknown"
    match = re.search(r"\b\d+\.\d+(?:\.\d+)?\b", _DRIVER_FILE.read_text())
    return match.group(0) if match else "unknown"
