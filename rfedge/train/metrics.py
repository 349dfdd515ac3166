"""The run's numbers as they come: metrics.jsonl for any tool, TensorBoard for eyes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rfedge.errors import BackendUnavailableError
from rfedge.io.atomic import atomic_file

METRICS_NAME: Final = "metrics.jsonl"
_TENSORBOARD_FOLDER: Final = "tensorboard"


MetricsWriter = Callable[[int, dict[str, float]], None]  # takes one row of numbers at a step


@contextmanager
def open_metrics(output: Path, *, resumed_step: int) -> Iterator[MetricsWriter]:
    """Yield a writer of rows `{"step": ..., name: value}`; rows after `resumed_step` are dropped first, and 0 drops all."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise BackendUnavailableError(
            "tensorboard", got="no such package", expected="tensorboard", remedy="Install it: pip install 'rfedge[train]'."
        ) from None
    path = output / METRICS_NAME
    _keep_rows(path, resumed_step)
    board = SummaryWriter(str(output / _TENSORBOARD_FOLDER), purge_step=resumed_step + 1 if resumed_step else None)
    with path.open("a") as file:

        def write(step: int, values: dict[str, float]) -> None:
            file.write(json.dumps({"step": step, **values}) + "\n")
            file.flush()
            for name, value in values.items():
                board.add_scalar(name, value, step)

        try:
            yield write
        finally:
            board.close()


def _keep_rows(path: Path, last_step: int) -> None:
    kept = []
    if last_step and path.is_file():
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the line a kill cut off
                continue
            if row["step"] <= last_step:
                kept.append(line + "\n")
    with atomic_file(path) as temporary:
        temporary.write_text("".join(kept))
