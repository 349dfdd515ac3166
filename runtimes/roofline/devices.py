"""The boards a policy may be meant for: memory, bandwidth and dense arithmetic, each figure with its source.

Data sheets count sparse operations and add the DLA; the figures here are dense and of the GPU alone, because a sparse
network is another network and this family does not run on the DLA. fp32 is the rate of the plain cores: where a runtime
may use TF32 on tensor cores, fp32 graphs are faster than predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from rfedge.errors import one_of
from rfedge.runtimes.roofline.work import Arithmetic

Origin = Literal["data sheet", "derived", "measured"]


# Shares of a roofline that whole policy calls reached, batch 1: pi0.5 in bf16 on AGX Orin .73 to .84 (166 to 193 ms of 140),
# OpenVLA-7B there .68 in fp16 and .64 in int4, pi0.5 in fp8 on Thor .49, SmolVLA's encoder on Orin Nano .46.
_GPU_SHARES: Final = (0.85, 0.45)
# Microseconds of a launch: the shortest kernels replayed in a CUDA graph, and kernels launched one by one by a board's CPU.
# NVIDIA's "Getting Started with CUDA Graphs": 3.4 and 9.6 us, of which the kernel itself takes 2.9.
_GPU_LAUNCH_US: Final = (2.0, 10.0)


@dataclass(frozen=True, slots=True)
class Device:
    """Figures of a device for its roofline."""

    name: str
    memory_bytes: int  # installed; on Jetson shared with the system
    bandwidth: float  # bytes a second
    peaks: Mapping[Arithmetic, float]  # operations a second, dense
    source: str  # where the figures are from
    origin: Origin = "data sheet"  # "data sheet", "derived" (from clocks and units) or "measured" (in this run)
    power_mode: str = ""
    reserved_bytes: int = 0  # of these not ours: system, cameras, libraries
    # best, worst: shares of the peaks that whole networks reach
    best: float = _GPU_SHARES[0]
    worst: float = _GPU_SHARES[1]
    # least_launch_us, most_launch_us: of one operator, however small
    least_launch_us: float = _GPU_LAUNCH_US[0]
    most_launch_us: float = _GPU_LAUNCH_US[1]

    def rate(self, arithmetic: Arithmetic) -> tuple[Arithmetic, float]:
        """Return what the device would compute it in, and that rate: a missing kind falls back to the next wider one."""
        for choice in _FALLBACKS[arithmetic]:
            if choice in self.peaks:
                return choice, self.peaks[choice]
        return "fp32", self.peaks["fp32"]


_FALLBACKS: Final[dict[Arithmetic, tuple[Arithmetic, ...]]] = {
    "int8": ("int8", "fp16", "fp32"),
    "fp16": ("fp16", "fp32"),
    "bf16": ("bf16", "fp16", "fp32"),
    "fp32": ("fp32",),
}

# An 8 GB Orin Nano offers 7.6 GB to the system (`free`), which with cameras and CUDA's own libraries takes about 1.6.
_JETSON_RESERVED_BYTES: Final = 2_000_000_000


_NANO: Final = "Orin Nano data sheet DS-11105: 1024 cores, 625 MHz"
_NANO_SUPER: Final = "Orin Nano Super developer kit data sheet: 67 sparse TOPS, 1020 MHz"
# Of 100 and 157 sparse TOPS the DLAs have about 40 and 80.
_NX: Final = "Orin NX data sheet DS-10712: 1024 cores, 918 MHz"
_NX_SUPER: Final = "Orin NX data sheet, Super mode: 1173 MHz"
# Of 200 and 275 sparse TOPS the GPU has 108 and 171.
_AGX_32: Final = "AGX Orin data sheet and technical brief 1.2: 1792 cores, 939 MHz"
_AGX_64: Final = "AGX Orin data sheet and technical brief 1.2: 2048 cores, 1301 MHz"
# 109, 41 and 14 sparse TOPS of the GPU. There is no bandwidth per mode, so memory-bound stages are flattered.
_AGX_MODES: Final = "int8 per mode: NVIDIA Deep-Learning-Accelerator-SW; fp16 and fp32 in proportion, bandwidth as at MAXN"
_T4000: Final = "Thor T4000 brief: 1200 sparse FP4 TFLOPS; the rest in T5000's proportions"
_T5000: Final = "Jetson Thor data sheet: 2560 cores, 1575 MHz; int8 share: TensorRT#4590"

# name, power mode, memory GB, bandwidth GB/s, dense int8 TOPS, dense fp16 TFLOPS, fp32 TFLOPS, origin, source.
# fp16 is half of int8, as in Ampere's and Blackwell's tensor cores; fp32 is CUDA cores x 2 x GPU clock.
_ROWS: Final[tuple[tuple[str, str, float, float, float, float, float, Origin, str], ...]] = (
    ("orin-nano-8gb", "15W", 8, 68, 20, 10, 1.28, "data sheet", _NANO),
    ("orin-nano-8gb-super", "MAXN_SUPER", 8, 102, 33, 17, 2.09, "data sheet", _NANO_SUPER),
    ("orin-nx-16gb", "25W", 16, 102.4, 30, 15, 1.88, "data sheet", _NX),
    ("orin-nx-16gb-super", "MAXN_SUPER", 16, 102.4, 38, 19, 2.40, "data sheet", _NX_SUPER),
    ("agx-orin-32gb", "40W", 32, 204.8, 54, 27, 3.37, "data sheet", _AGX_32),
    ("agx-orin-64gb", "MAXN", 64, 204.8, 85, 42.5, 5.32, "data sheet", _AGX_64),
    ("agx-orin-64gb-50w", "50W", 64, 204.8, 54.5, 27.2, 3.4, "derived", _AGX_MODES),
    ("agx-orin-64gb-30w", "30W", 64, 204.8, 20.5, 10.2, 1.28, "derived", _AGX_MODES),
    ("agx-orin-64gb-15w", "15W", 64, 204.8, 7, 3.5, 0.44, "derived", _AGX_MODES),
    ("thor-t4000", "70W", 64, 273, 300, 150, 4.7, "derived", _T4000),
    ("thor-t5000", "MAXN", 128, 273, 517, 258, 8.06, "data sheet", _T5000),
)
DEVICES: Final[dict[str, Device]] = {
    name: Device(
        name=name,
        memory_bytes=int(memory_gb * 1e9),
        bandwidth=bandwidth_gb_s * 1e9,
        peaks={"int8": int8 * 1e12, "fp16": fp16 * 1e12, "bf16": fp16 * 1e12, "fp32": fp32 * 1e12},
        source=source,
        origin=origin,
        power_mode=power_mode,
        reserved_bytes=_JETSON_RESERVED_BYTES,
    )
    for name, power_mode, memory_gb, bandwidth_gb_s, int8, fp16, fp32, origin, source in _ROWS
}


def device(name: str) -> Device:
    """Return the known device called `name`. Raises ConfigError if none has this name; the text names the nearest one."""
    return DEVICES[one_of((*DEVICES, "this-cpu", "this-gpu"), name, "device")]


def device_of_board(model: str, memory_bytes: int) -> str | None:
    """Return the device that a Jetson's device tree calls such as "NVIDIA Jetson AGX Orin Developer Kit", or None."""
    super_mode = "-super" if "Super" in model else ""
    if "Orin Nano" in model and memory_bytes > 6e9:
        return f"orin-nano-8gb{super_mode}"
    if "Orin NX" in model and memory_bytes > 12e9:
        return f"orin-nx-16gb{super_mode}"
    if "AGX Orin" in model:
        return "agx-orin-64gb" if memory_bytes > 48e9 else "agx-orin-32gb"
    if "Thor" in model:
        return "thor-t5000" if memory_bytes > 96e9 else "thor-t4000"
    return None
