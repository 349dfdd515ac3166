"""How a probe answers: with a value, or with the reason why there is none; and what all probes read."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

Value = TypeVar("Value")


class Absent(Exception):  # noqa: N818 - an answer, not an error
    """Raised inside a probe: what it looks for is not here, and this is why."""


@dataclass(frozen=True)
class Probed(Generic[Value]):
    """A value, or None and the reason."""

    value: Value | None
    reason: str = ""


def probe(look: Callable[[], Value]) -> Probed[Value]:
    """Return what `look` finds; whatever goes wrong in it is the reason why it found nothing."""
    try:
        return Probed(look())
    except Absent as absent:
        return Probed(None, str(absent))
    except Exception as error:  # a doctor who faints is of no use
        return Probed(None, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def read_text(path: Path) -> str:
    """Return the text of a system file, or "" where there is none or it may not be read."""
    try:
        return path.read_bytes().decode(errors="replace").replace("\0", "\n").strip()
    except OSError:
        return ""


def command_output(arguments: Sequence[str], *, timeout_s: float = 10.0) -> str:
    """Return what a command prints. Raises Absent if the command is not here, fails, or takes longer than `timeout_s`."""
    try:
        done = subprocess.run(
            arguments, check=True, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise Absent(f"no {arguments[0]} command") from None
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr or error.stdout or "").splitlines() if line.strip()]
        raise Absent(f"{arguments[0]} failed: {lines[-1].strip() if lines else f'status {error.returncode}'}") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise Absent(f"{arguments[0]}: {type(error).__name__}") from None
    return done.stdout


def limit_folders(root: Path, controller: Literal["cpu", "memory"]) -> list[tuple[Path, Literal[1, 2]]]:
    """Return (folder, version) of this process's control group and of all above it, each of which may set a limit."""
    folders: list[tuple[Path, Literal[1, 2]]] = []
    for line in read_text(root / "proc/self/cgroup").splitlines():
        hierarchy, controllers, group = [*line.split(":", 2), "", ""][:3]
        parts = [part for part in group.split("/") if part not in ("", "..")]
        # In a container the group's own folder may not be mounted; its limit then stands at the top.
        above = [parts[:length] for length in range(len(parts), -1, -1)]
        if hierarchy == "0" and not controllers:
            folders += [((root / "sys/fs/cgroup").joinpath(*names), 2) for names in above]
        elif controller in controllers.split(","):
            folders += [((root / "sys/fs/cgroup" / controller).joinpath(*names), 1) for names in above]
    return folders
