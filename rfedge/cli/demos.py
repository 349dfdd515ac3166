"""`rfedge demos`: scripted experts -> demonstrations in the CALVIN format."""

from __future__ import annotations

import dataclasses
import functools
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rfedge.envs import Environment
    from rfedge.envs.demonstrations import Episode

__all__ = ["demos_app"]

demos_app = typer.Typer(name="demos", help="Collect, inspect and convert demonstrations.", invoke_without_command=True)


@demos_app.callback()
def demos(
    context: typer.Context,
    output: Annotated[
        Path | None, typer.Option(help="Dataset folder to write; repeat the command to go on after a stop.")
    ] = None,
    tasks: Annotated[str, typer.Option(help="`all` that have an expert, or names with commas between.")] = "all",
    episodes_per_task: Annotated[int, typer.Option(min=1, help="Successful episodes of each task.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Decides every episode.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that record; the result does not depend on it.")] = 1,
    scene: Annotated[str, typer.Option(help="CALVIN scene.")] = "D",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check tasks, scene and renderer; write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as one JSON document.")] = False,
) -> int:
    """Collect demonstrations with scripted experts; resumable, and the same for any number of workers."""
    if context.invoked_subcommand is not None:
        return 0
    from rfedge.errors import ConfigError, explain

    if output is None:
        raise ConfigError(
            explain("--output", got="nothing", expected="a dataset folder to write", remedy="Add --output DIR.")
        )
    from rfedge.cli.progress import stage_progress
    from rfedge.cli.tables import print_table
    from rfedge.data.collection import CollectionRequest, collect

    request = CollectionRequest(_tasks(tasks), episodes_per_task, seed=seed, scene=scene)
    request.check()
    _environment(scene)  # before anything is written: a wrong scene or a missing renderer ends here
    if dry_run:
        print(f"ready: {episodes_per_task} episodes each of {', '.join(request.tasks)} -> {output}; nothing was written")
        return 0
    with stage_progress() as progress:
        result = collect(
            functools.partial(_record, scene=scene),
            request,
            output,
            workers=workers,
            versions={"python": platform.python_version(), **{name: metadata.version(name) for name in ("numpy", "mujoco")}},
            on_progress=lambda done, total, _: progress("episodes", done, total),
        )
    rows = [(row.task, row.episodes, row.frames, f"{row.mean_frames:.1f}", row.retries, row.missing) for row in result.tasks]
    columns = ("task", "episodes", "frames", "mean length", "retries", "missing")
    print_table(str(result.folder), columns, rows, to_stderr=as_json)
    if as_json:
        print(json.dumps({**dataclasses.asdict(result), "folder": str(result.folder)}))
    # A dataset without one of its tasks is not what was asked for; single missing episodes are.
    return 1 if any(not row.episodes for row in result.tasks) else 0


def _tasks(text: str) -> tuple[str, ...]:
    """Names in `text`; raises ConfigError for one that is unknown or has no expert."""
    from rfedge.envs.experts import EXPERT_TASKS
    from rfedge.envs.tasks import check_task
    from rfedge.errors import ConfigError, did_you_mean, explain

    if text == "all":
        return EXPERT_TASKS
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if check_task(name) not in EXPERT_TASKS:
            raise ConfigError(
                explain(
                    "expert",
                    got=f"none for {name!r}",
                    expected=did_you_mean(name, EXPERT_TASKS),
                    remedy="Choose one of these tasks.",
                )
            )
    return names


def _record(task: str, seed: int, *, scene: str) -> Episode:
    from rfedge.envs.demonstrations import record_episode

    return record_episode(task, scene=scene, seed=seed, environment=_environment(scene))


@functools.cache  # one per process; an episode does not depend on those before it
def _environment(scene: str) -> Environment:
    from rfedge.envs import make_environment

    return make_environment("playtable", scene=scene)
