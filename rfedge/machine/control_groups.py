"""Where the kernel's control groups keep the limits of this process: containers are made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rfedge.machine.probing import read_text


def limit_folders(root: Path, controller: Literal["cpu", "memory"]) -> list[tuple[Path, Literal[1, 2]]]:
    """Return (folder, version of control groups) of this process's group and of all above it; each may set a limit."""
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
