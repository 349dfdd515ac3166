"""The CPU: its int8 instructions, and how much of it this process may use."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from rfedge.machine.probing import limit_folders, read_text

Int8Speed = Literal["fast", "slow"]


@dataclass(frozen=True, slots=True)
class Int8Support:
    """How the CPU multiplies int8, and why."""

    speed: Int8Speed
    instructions: str
    text: str


@dataclass(frozen=True, slots=True)
class Processor:
    """The CPU as this process sees it."""

    model: str
    architecture: str
    logical_cores: int
    allowed_cores: int  # this process may be scheduled on
    quota_cores: float | None  # CPU time its control group grants, in cores; None without a limit
    features: tuple[str, ...]  # those flags that decide how fast int8 and 16-bit MatMuls are
    int8: Int8Support

    @property
    def usable_cores(self) -> int:
        """Threads worth starting: cores it may run on, cut by the control group's quota."""
        if self.quota_cores is None:
            return self.allowed_cores
        return max(1, min(self.allowed_cores, int(self.quota_cores + 0.5)))


# /proc/cpuinfo flag -> the name its makers use
_FEATURES: Final = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "asimdhp": "FP16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "BF16",
    "sve": "SVE",
}


def read_cpuinfo(text: str) -> tuple[str, set[str]]:
    """Return (model name, flags) of /proc/cpuinfo; the name may be ""."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields.get("model name", ""), set((fields.get("flags") or fields.get("Features") or "").split())


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Return (model name, features by their makers' names) from /proc/cpuinfo."""
    model, flags = read_cpuinfo(text)
    return model, tuple(name for flag, name in _FEATURES.items() if flag in flags)


def allowed_cores() -> int:
    """Return the cores that this process may be scheduled on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def int8_support(features: tuple[str, ...]) -> Int8Support:
    """Return how a CPU with these features runs int8 MatMuls in onnxruntime."""
    for instruction in ("AMX-INT8", "AVX512-VNNI", "AVX-VNNI", "i8mm", "dotprod"):
        if instruction in features:
            return Int8Support("fast", instruction, f"{instruction}: int8 MatMuls run several times as fast as fp32")
    if "AVX2" in features:
        return Int8Support(
            "slow", "AVX2", "AVX2 without VNNI: int8 gains little, its fast kernels saturate and exact ones run instead"
        )
    if "NEON" in features:
        return Int8Support("slow", "NEON", "NEON without dotprod (before Armv8.2): int8 gains little")
    return Int8Support("slow", "none", "no int8 instructions: int8 saves memory, not time")


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the cores' worth of CPU time that control groups grant this process, or None without a limit."""
    quotas = []
    for folder, version in limit_folders(root, "cpu"):
        if version == 2:
            quota, _, period = read_text(folder / "cpu.max").partition(" ")
        else:
            quota, period = read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us")
        quotas.append(_ratio(quota, period))
    return min((quota for quota in quotas if quota is not None), default=None)


def _ratio(quota: str, period: str) -> float | None:
    if not quota.lstrip("-").isdigit() or not period.isdigit() or int(quota) <= 0 or int(period) == 0:
        return None  # "max" or -1: no limit
    return int(quota) / int(period)


def probe_processor(root: Path = Path("/")) -> Processor:
    """Read the CPU's facts; `root` is the file system to read them from."""
    model, features = parse_cpuinfo(read_text(root / "proc/cpuinfo"))
    return Processor(
        model=model or platform.processor() or "unknown",
        architecture=platform.machine(),
        logical_cores=os.cpu_count() or 1,
        allowed_cores=allowed_cores(),
        quota_cores=cpu_quota(root),
        features=features,
        int8=int8_support(features),
    )
