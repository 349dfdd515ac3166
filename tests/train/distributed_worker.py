"""One process of several: `python distributed_worker.py JOBS.json` trains what the file lists, in one process group."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from rfedge.train import TrainConfig, TrainingStep, train_policy
from rfedge.train.distributed import join


def write_jobs(path: Path, configs: list[TrainConfig], *, kill: tuple[int, int] | None = None) -> Path:
    """Write what `main` reads; `kill` is (rank, step): that process kills itself, as a machine does that loses power."""
    document = {"kill": kill, "configs": [config.model_dump(mode="json") for config in configs]}
    path.write_text(json.dumps(document))
    return path


def main(path: Path) -> None:
    document: dict[str, Any] = json.loads(path.read_text())
    torch.set_num_threads(1)

    first_start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"

    def on_step(report: TrainingStep) -> None:
        if first_start and document["kill"] == [int(os.environ["RANK"]), report.step]:
            os.kill(os.getpid(), signal.SIGKILL)

    with join("cpu"):
        for values in document["configs"]:
            train_policy(TrainConfig.model_validate(values), on_step=on_step)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
