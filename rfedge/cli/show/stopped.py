"""What a command that is stopped by Ctrl-C, SIGTERM or a lost terminal says: what was kept, and how to go on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

_STATUSES: Final = (129, 143)  # of SIGHUP and SIGTERM, see `rfedge.cli.app.main`


@contextmanager
def kept_when_stopped(kept: str) -> Iterator[None]:
    """Print "rfedge: stopped; `kept`" when a signal ends the block, and exit with its status."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        status = end.code if isinstance(end, SystemExit) else 130
        if isinstance(end, SystemExit) and status not in _STATUSES:
            raise
        print(f"rfedge: stopped; {kept}", file=sys.stderr)
        raise typer.Exit(status if isinstance(status, int) else 1) from None
