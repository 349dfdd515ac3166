"""`rfedge verify`: is this bundle whole, and does it still act like its checkpoint?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rfedge.cli.groups import CommandWithSubcommands
from rfedge.cli.options import AsJson, bundle_folder, checkpoint_folder
from rfedge.cli.verify_parity import parity

verify_app = typer.Typer(
    name="verify",
    cls=CommandWithSubcommands,
    invoke_without_command=True,
    context_settings={"allow_interspersed_args": True, "allow_extra_args": False},
    subcommand_metavar="| parity --fixture DIR",
)
verify_app.command()(parity)


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
