"""`rfedge verify parity`: does our model compute what the original code computes?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rfedge.cli.options import AsJson


def parity(
    fixture: Annotated[Path, typer.Option(help="Folder with a model, inputs and outputs saved by the original code.")],
    as_json: AsJson = False,
) -> int:
    """Run a small model of the original code, stage by stage; exit 1 when a stage or a tensor is off."""
    import dataclasses
    import math

    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.tables import print_json, print_table, say
    from rfedge.model.original import run_parity

    with stage_progress() as progress:
        report = run_parity(fixture, progress=progress)
    rows = [
        (
            stage.stage,
            f"{stage.worst:.1e}{' of the value' if stage.relative else ''}",
            f"<= {stage.tolerance:g}",
            stage.num_arrays,
            "ok" if stage.passed else f"MISSED in {stage.worst_array}",
        )
        for stage in report.stages
    ]
    columns = ("stage", "worst difference", "allowed", "arrays", "")
    print_table(f"{report.fixture}: difference from the original code", columns, rows)
    weights = report.weights
    say(
        *(f"{name}: in no file" for name in weights.missing),
        *(f"{name}: nobody knows it" for name in weights.left_over),
        *(f"assumed: {sentence}" for sentence in weights.assumed),
        *(f"{name}: not compared, nothing here computes it" for name in report.not_compared),
        f"{report.fixture}: {sum(weights.taken.values())} tensors, {len(weights.missing)} missing, "
        f"{len(weights.left_over)} left over, parity {'passed' if report.passed else 'MISSED'}",
    )
    stages = [
        dataclasses.asdict(stage) | {"worst": stage.worst if math.isfinite(stage.worst) else None, "passed": stage.passed}
        for stage in report.stages
    ]
    document = {"format": "rfedge-parity-fixture", **dataclasses.asdict(report), "stages": stages}
    print_json({**document, "passed": report.passed})
    return 0 if report.passed else 1
