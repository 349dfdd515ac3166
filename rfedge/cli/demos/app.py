"""`rfedge demos`: scripted experts -> demonstrations in the CALVIN format."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from rfedge.benchmarks.success.demonstrations import RecordingOptions
from rfedge.cli.demos.recording import Recorder
from rfedge.cli.groups import lazy_group
from rfedge.cli.options import AsJson, plan_of, with_options
from rfedge.data.collection.collect import CollectionRequest, CollectionResult, collect

demos_app = typer.Typer(
    name="demos",
    cls=lazy_group("rfedge demos"),
    help="Collect, inspect and convert demonstrations.",
    invoke_without_command=True,
)


@demos_app.callback()
@with_options(CollectionRequest, Recorder, RecordingOptions)
def demos(
    context: typer.Context,
    output: Annotated[
        Path | None, typer.Option(help="Dataset folder to write; repeat the command to go on after a stop.")
    ] = None,
    tasks: Annotated[str, typer.Option(help="`all`, or names with commas between.")] = "all",
    workers: Annotated[int, typer.Option(min=1, help="Processes that record; the result does not depend on it.")] = 1,
    action_noise: Annotated[
        float,
        typer.Option(
            help="Push the arm off its path: noise on executed actions, 0 to 1; labels stay clean.",
            rich_help_panel="Episodes",
        ),
    ] = 0.0,
    noise_share: Annotated[
        float | None, typer.Option(help="Part of the steps with noise; default 0.3.", rich_help_panel="Episodes")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all options and the renderer; write nothing.")] = False,
    as_json: AsJson = False,
    **given: Any,
) -> int:
    """Collect demonstrations with scripted experts; resumable, and the same for any number of workers."""
    if context.invoked_subcommand is not None:
        return 0
    from rfedge.benchmarks.success.plan import parse_tasks
    from rfedge.cli.show.progress import kept_when_stopped, stage_progress
    from rfedge.cli.show.tables import print_json, say_ready
    from rfedge.envs.action_noise import ActionNoise
    from rfedge.envs.experts import EXPERT_TASKS
    from rfedge.errors import ConfigError
    from rfedge.runtimes.control.limits import MAX_STEPS

    if output is None:
        raise ConfigError("--output", got="nothing", expected="a dataset folder to write", remedy="Add --output DIR.")
    needs_policy = ("mode", "execute_steps", "expert_share", "takeover_steps", "max_steps")
    alone = [] if given["policy"] is not None else [(name, "--policy") for name in needs_policy if given[name] is not None]
    if noise_share is not None and not action_noise:
        alone.append(("noise_share", "--action-noise"))
    if alone:
        name, needed = alone[0]
        flag = f"--{name.replace('_', '-')}"
        raise ConfigError(flag, got=f"no {needed}", expected="both or neither", remedy=f"Add {needed}.")
    chosen = parse_tasks(tasks, EXPERT_TASKS)
    fixed = {} if given["policy"] is None or given["max_steps"] is not None else {"max_steps": MAX_STEPS}
    options = plan_of(
        RecordingOptions,
        given,
        noise=ActionNoise(action_noise, *(() if noise_share is None else (noise_share,))) if action_noise else None,
        chain_tasks=chosen,
        **fixed,
    )
    options.check()
    recorder = plan_of(Recorder, given, options=options)
    request = plan_of(
        CollectionRequest,
        given,
        tasks=chosen,
        scene=recorder.scene,
        frames_per_episode=options.max_frames,
        keep_failures=recorder.policy is not None and options.takeover_steps is None,
    )
    request.check()
    # Before anything is written: a wrong scene, a missing renderer or a damaged bundle ends here.
    settings, versions = recorder.describe(chosen, keep_open=workers == 1 and not dry_run)
    request = dataclasses.replace(request, recording=settings)
    if dry_run:
        say_ready(f"{request.episodes_per_task} episodes each of {', '.join(chosen)}", output)
        return 0
    kept = f"the episodes that were recorded are in {output}, the same command goes on"
    with kept_when_stopped(kept), stage_progress() as progress:
        result = collect(
            recorder,
            request,
            output,
            workers=workers,
            versions=versions,
            on_progress=lambda done, total, _: progress("episodes", done, total),
        )
    _print(result, several=options.chain_length > 1 or recorder.policy is not None)
    print_json(result)
    # A dataset without one of its tasks is not what was asked for; single missing episodes are.
    return 1 if any(not row.episodes for row in result.tasks) else 0


def _print(result: CollectionResult, *, several: bool) -> None:
    """Print one row a task; `several`: an episode may hold more than one segment, or one that was not solved."""
    from rfedge.cli.show.tables import print_table

    columns: tuple[str, ...] = ("task", "episodes", "frames", "mean length", "retries", "missing")
    rows: list[tuple[object, ...]] = [
        (row.task, row.episodes, row.frames, f"{row.mean_frames:.1f}", row.retries, row.missing) for row in result.tasks
    ]
    if several:  # what fits into 80 columns
        columns = ("task", "episodes", "segments", "solved", "frames", "missing")
        rows = [(row.task, row.episodes, row.segments, row.solved, row.frames, row.missing) for row in result.tasks]
    print_table(str(result.folder), columns, rows)
