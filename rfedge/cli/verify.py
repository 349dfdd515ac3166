"""`rfedge verify`: is a bundle whole and like its checkpoint? `parity`: does our model compute as the original does?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rfedge.cli.groups import CommandWithSubcommands
from rfedge.cli.options import AsJson, bundle_folder, checkpoint_folder

verify_app = typer.Typer(
    name="verify",
    cls=CommandWithSubcommands,
    invoke_without_command=True,
    context_settings={"allow_interspersed_args": True, "allow_extra_args": False},
    subcommand_metavar="| parity --fixture DIR",
)


@verify_app.callback()
def verify(
    bundle: Annotated[Path, typer.Argument(callback=bundle_folder, help="Bundle folder, or a shipped policy's name.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(callback=checkpoint_folder, help="Measure parity with this checkpoint or shipped policy again."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Demonstrations for the parity rollout; random frames without.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the parity rollout.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the rollout's episodes or frames.")] = 1,
    json: AsJson = False,
) -> None:
    """Check every file's sha256 and, given the checkpoint, the parity; fail when something is not as it was."""
    from rfedge.bundle.artifact import load_bundle
    from rfedge.cli.show.tables import print_manifest

    opened = load_bundle(bundle)
    if checkpoint is not None:
        from rfedge.cli.show.progress import stage_progress
        from rfedge.export.proof import verify_parity

        with stage_progress() as progress:
            opened = verify_parity(opened, checkpoint, data=data, num_steps=steps, seed=seed, progress=progress)
    print_manifest(opened)


@verify_app.command()
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
