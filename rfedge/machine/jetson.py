"""Facts of a Jetson: board, L4T and JetPack, power mode, clocks. Parsers first; they take text and return records."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rfedge.machine.probing import Absent, Probed, command_output, probe, read_text


@dataclass(frozen=True, slots=True)
class Clock:
    """One clock domain ("cpu", "gpu" or "emc", the memory controller) in MHz."""

    min_mhz: float
    max_mhz: float
    current_mhz: float

    @property
    def locked(self) -> bool:
        """Whether it cannot change, as after `jetson_clocks`."""
        return self.min_mhz == self.max_mhz


@dataclass(frozen=True, slots=True)
class PowerMode:
    name: str
    number: int | None


@dataclass(frozen=True, slots=True)
class Jetson:
    model: str
    l4t: str  # release of Jetson Linux, such as "36.4.3"
    jetpack: str  # the JetPack it came with, or the release line where the exact one is not known
    cuda: Probed[str]
    power_mode: Probed[PowerMode]
    clocks: dict[str, Clock] = field(default_factory=dict)  # by domain; empty when they could not be read
    clocks_reason: str = ""


# NVIDIA's Jetson Linux archive: release -> JetPack.
_JETPACKS: Final[dict[str, str]] = json.loads(Path(__file__).with_name("jetpacks.json").read_bytes())
_JETPACK_LINES: Final = {32: "4.x", 34: "5.0 DP", 35: "5.x", 36: "6.x", 38: "7.0 or 7.1", 39: "7.2 or newer"}


def parse_tegra_release(text: str) -> str | None:
    """Return the L4T release ("36.4.3") from /etc/nv_tegra_release, or None when the text is something else."""
    match = re.search(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
    return f"{match.group(1)}.{match.group(2)}" if match else None


def jetpack_of(l4t: str) -> str:
    """Return the JetPack of an L4T release, or its line when that very release is not in the table."""
    padded = ".".join([*l4t.split("."), "0", "0"][:3])
    return _JETPACKS.get(padded) or _JETPACK_LINES.get(int(l4t.split(".")[0]), "unknown")


def parse_power_mode(text: str) -> PowerMode:
    """Return the mode from `nvpmodel -q`; raises Absent when the text names none."""
    match = re.search(r"NV Power Mode:\s*(\S+)", text)
    if match is None:
        raise Absent("nvpmodel -q names no mode")
    number = re.search(r"^\s*(\d+)\s*$", text, re.MULTILINE)
    return PowerMode(match.group(1).removeprefix("MODE_"), int(number.group(1)) if number else None)


def parse_clocks(text: str) -> dict[str, Clock]:
    """Return clocks by domain from `jetson_clocks --show`; of the CPU the fastest core that is online."""
    clocks: dict[str, Clock] = {}
    for line in text.splitlines():
        numbers = dict(re.findall(r"(MinFreq|MaxFreq|CurrentFreq)=(\d+)", line))
        name = line.strip().split(":")[0].split(" ")[0].lower()
        if len(numbers) != 3 or "Online=0" in line:
            continue
        domain = "cpu" if re.fullmatch(r"cpu\d+", name) else name
        if domain not in ("cpu", "gpu", "emc"):
            continue
        divisor = 1e3 if domain == "cpu" else 1e6  # kHz for cores, Hz for the rest
        clock = Clock(*(int(numbers[key]) / divisor for key in ("MinFreq", "MaxFreq", "CurrentFreq")))
        if domain not in clocks or clock.max_mhz > clocks[domain].max_mhz:
            clocks[domain] = clock
    return clocks


def parse_cuda_version(text: str) -> str:
    """Return the toolkit's version from CUDA's version.json; raises Absent when it names none."""
    try:
        return str(json.loads(text)["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        raise Absent("no CUDA toolkit under /usr/local/cuda") from None


def probe_jetson(root: Path = Path("/")) -> Jetson:
    """Read the board's facts from the file system at `root`; raises Absent where this is no Jetson."""
    l4t = parse_tegra_release(read_text(root / "etc/nv_tegra_release"))
    model = read_text(root / "proc/device-tree/model")
    if l4t is None and "Jetson" not in model:
        raise Absent("not a Jetson")
    shown = probe(lambda: parse_clocks(command_output(["jetson_clocks", "--show"])))
    clocks = shown.value or _devfreq_clocks(root)
    return Jetson(
        model=model or "unknown board",
        l4t=l4t or "unknown",
        jetpack=_installed_jetpack() or (jetpack_of(l4t) if l4t else "unknown"),
        cuda=probe(lambda: parse_cuda_version(read_text(root / "usr/local/cuda/version.json"))),
        power_mode=probe(lambda: parse_power_mode(command_output(["nvpmodel", "-q"]))),
        clocks=clocks,
        clocks_reason="" if clocks else shown.reason or "jetson_clocks --show needs root; run `sudo jetson_clocks --show`",
    )


def _devfreq_clocks(root: Path) -> dict[str, Clock]:
    """Read the GPU's clock from /sys, which unlike `jetson_clocks` needs no root."""
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if not re.search(r"gpu|ga10b|gb10b|gv11b", folder.name):
            continue
        values = [read_text(folder / name) for name in ("min_freq", "max_freq", "cur_freq")]
        if all(value.isdigit() for value in values):
            return {"gpu": Clock(*(int(value) / 1e6 for value in values))}
    return {}


def _installed_jetpack() -> str | None:
    query = probe(lambda: command_output(["dpkg-query", "-W", "-f", "${Version}", "nvidia-jetpack"]))
    match = re.match(r"\d+(?:\.\d+)+", query.value or "")
    return match.group(0) if match else None
