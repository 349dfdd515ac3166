"""`rfedge demos snapshots`: pictures of random states in the CALVIN format, for `rfedge pretrain` alone."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfedge.cli.options import AsJson
from rfedge.envs.looks import LOOKS_HELP, Looks

if TYPE_CHECKING:
    from rfedge.data.collection.collect import Episode
    from rfedge.envs.playtable.environment import PlayTable

_FRAMES_PER_SLOT = 16


def snapshots(
    output: Annotated[Path, typer.Option(help="Dataset folder to write; repeat the command to go on after a stop.")],
    num: Annotated[int, typer.Option(min=1, help="Pictures of each camera, rounded up to a multiple of 16.")] = 1600,
    seed: Annotated[int, typer.Option(min=0, help="Decides every state.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result does not depend on it.")] = 1,
    scene: Annotated[str, typer.Option(help="CALVIN scene.")] = "D",
    looks: Annotated[Looks, typer.Option(help=LOOKS_HELP)] = "playtable",
    as_json: AsJson = False,
) -> None:
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.tables import print_json, say
    from rfedge.data.collection.collect import CollectionRequest, collect
    from rfedge.envs.snapshots import SNAPSHOT_TASK

    recording = {"environment": "playtable", "looks": looks, "snapshots": True}
    request = CollectionRequest((SNAPSHOT_TASK,), -(-num // _FRAMES_PER_SLOT), seed=seed, scene=scene, recording=recording)
    _open(scene, looks).close()  # before anything is written
    _open.cache_clear()
    with stage_progress() as progress:
        result = collect(
            functools.partial(_record, scene=scene, looks=looks),
            request,
            output,
            workers=workers,
            on_progress=lambda done, total, _: progress("snapshots", _FRAMES_PER_SLOT * done, _FRAMES_PER_SLOT * total),
        )
    frames = sum(row.frames for row in result.tasks)
    say(f"{result.folder}: {frames} frames")
    print_json({"folder": result.folder, "frames": frames})


def _record(task: str, seed: int, *, scene: str, looks: Looks) -> Episode:
    from rfedge.envs.snapshots import record_snapshots

    environment = _open(scene, looks)
    environment.redress((seed,))
    return record_snapshots(environment, seed, _FRAMES_PER_SLOT)


@functools.cache  # one per process
def _open(scene: str, looks: Looks) -> PlayTable:
    from rfedge.envs.playtable.environment import PlayTable

    return PlayTable(scene, looks=looks)
