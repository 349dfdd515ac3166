"""Run the commands that a user would type, one process each, and read what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_rfedge(arguments: Sequence[str], *, folder: Path | None = None) -> dict[str, Any]:
    """Run `rfedge ARGUMENTS --json` in `folder`, tables and bars on the screen; return the document that it prints last.

    Raises subprocess.CalledProcessError where its exit status is not 0; it said why on stderr.
    """
    script = str(Path(sys.executable).parent / "rfedge")
    ended = subprocess.run([script, *arguments, "--json"], cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    document: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return document
