"""Memory, swap and disk, and what a container leaves of them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from rfedge.machine.probing import Absent, limit_folders, read_text

# A control group without a limit reports the largest number of pages it can hold.
_NO_LIMIT_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class Swap:
    """One swap area; `compressed` when it is zram, which is memory too."""

    name: str
    size_bytes: int
    used_bytes: int
    compressed: bool


@dataclass(frozen=True, slots=True)
class Memory:
    # total_bytes, available_bytes: of the machine; what is available counts caches that can be dropped
    total_bytes: int
    available_bytes: int
    limit_bytes: int | None  # of this process's control groups; None without one
    swaps: tuple[Swap, ...]
    disk_free_bytes: int  # where the command was started

    @property
    def usable_bytes(self) -> int:
        """Memory that a policy may take now."""
        return min(self.available_bytes, self.limit_bytes or self.available_bytes)


def parse_meminfo(text: str) -> dict[str, int]:
    """Return the entries of /proc/meminfo in bytes."""
    entries = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number, _, unit = value.strip().partition(" ")
        if number.isdigit():
            entries[name] = int(number) * (1024 if unit == "kB" else 1)
    return entries


def parse_swaps(text: str) -> tuple[Swap, ...]:
    """Return the areas that /proc/swaps lists."""
    areas = []
    for line in text.splitlines()[1:]:
        columns = line.split()
        if len(columns) >= 4 and columns[2].isdigit() and columns[3].isdigit():
            areas.append(Swap(columns[0], int(columns[2]) * 1024, int(columns[3]) * 1024, "zram" in columns[0]))
    return tuple(areas)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return the smallest memory limit of this process's control groups in bytes, or None without one."""
    limits = []
    for folder, version in limit_folders(root, "memory"):
        text = read_text(folder / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        if text.isdigit() and int(text) < _NO_LIMIT_BYTES:
            limits.append(int(text))
    return min(limits, default=None)


def probe_memory(root: Path = Path("/")) -> Memory:
    """Read memory's facts; `root` is the file system to read them from."""
    entries = parse_meminfo(read_text(root / "proc/meminfo"))
    if "MemTotal" not in entries:
        raise Absent("no /proc/meminfo: not a Linux system")
    return Memory(
        total_bytes=entries["MemTotal"],
        available_bytes=entries.get("MemAvailable", entries.get("MemFree", 0)),
        limit_bytes=memory_limit(root),
        swaps=parse_swaps(read_text(root / "proc/swaps")),
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
    )
