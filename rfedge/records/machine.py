"""Provenance of a number: processor, memory, library versions and the commit of this source."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import psutil

from rfedge.machine.memory import parse_meminfo
from rfedge.machine.probing import read_text
from rfedge.machine.processor import allowed_cores, read_cpuinfo
from rfedge.records.record import Record

# Those that decide how fast int8 and 16-bit MatMuls are.
_FLAGS: Final = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
LIBRARIES: Final = ("rfedge", "onnxruntime", "torch", "numpy", "tensorrt", "openvino", "mujoco")


class Machine(Record):
    """The computer, as far as it decides latency."""

    cpu: str
    architecture: str
    physical_cores: int | None
    logical_cores: int | None
    usable_cores: int
    memory_bytes: int
    cpu_flags: tuple[str, ...]
    governor: str | None
    system: str


class Measurement(Record):
    """The head of a result that depends on when, of what source and on what it was measured."""

    # format, schema_version: each document narrows them to its own; they are declared here to stand first in it
    format: str
    schema_version: int
    measured_at: str  # ISO 8601, UTC, whole seconds
    commit: str | None  # see `git_commit`
    machine: Machine
    versions: dict[str, str]  # see `library_versions`


def provenance() -> dict[str, Any]:
    """Return the fields of `Measurement` that hold for anything measured now and here, without `format` and its version."""
    return {
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": library_versions(),
    }


def describe_machine() -> Machine:
    model, flags = read_cpuinfo(read_text(Path("/proc/cpuinfo")))
    board = read_text(Path("/proc/device-tree/model"))  # "NVIDIA Jetson ..." on the boards this is for
    return Machine(
        cpu=model or board or platform.processor() or "unknown",
        architecture=platform.machine(),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count(),
        usable_cores=allowed_cores(),
        memory_bytes=psutil.virtual_memory().total,
        cpu_flags=tuple(flag for flag in _FLAGS if flag in flags),
        governor=read_text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")) or None,
        system=platform.platform(),
    )


def library_versions(names: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Return the versions of Python and of those libraries that are installed."""
    installed = {str(found.metadata["Name"]).lower() for found in metadata.distributions()}
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names if name in installed}


def git_commit() -> str | None:
    """Return the commit of the checkout this file lies in, with "-dirty" when it was changed; None without one."""
    here = Path(__file__).resolve().parent
    try:
        commit = _git(here, "rev-parse", "HEAD").strip()
        return f"{commit}-dirty" if _git(here, "status", "--porcelain").strip() else commit
    except (OSError, subprocess.SubprocessError):
        return None


def peak_rss_bytes() -> int | None:
    """Return the most memory this process ever held; None where the system does not tell."""
    # Not `ru_maxrss`, which starts a child process at its parent's peak.
    return parse_meminfo(read_text(Path("/proc/self/status"))).get("VmHWM")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout
