"""`rfedge demos`: scripted experts -> demonstrations in the CALVIN format."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfedge.cli.bundle_names import bundle_folder
from rfedge.cli.demos.convert import convert
from rfedge.cli.demos.inspect import inspect
from rfedge.cli.demos.merge import merge
from rfedge.cli.demos.snapshots import snapshots
from rfedge.envs.looks import LOOKS_HELP, RENDERER_HELP, Looks, Renderer

if TYPE_CHECKING:
    from rfedge.benchmarks.success.demonstrations import RecordingOptions
    from rfedge.data.collection.collect import CollectionResult
    from rfedge.runtimes.rollout.policy_source import PolicyLoop

__all__ = ["demos_app"]

demos_app = typer.Typer(name="demos", help="Collect, inspect and convert demonstrations.", invoke_without_command=True)
demos_app.command()(merge)
demos_app.command()(inspect)
demos_app.command()(convert)
demos_app.command()(snapshots)


@demos_app.callback()
def demos(
    context: typer.Context,
    output: Annotated[
        Path | None, typer.Option(help="Dataset folder to write; repeat the command to go on after a stop.")
    ] = None,
    tasks: Annotated[str, typer.Option(help="`all`, or names with commas between.")] = "all",
    episodes_per_task: Annotated[int, typer.Option(min=1, help="Rollouts that begin with each task.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Decides every episode.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that record; the result does not depend on it.")] = 1,
    env: Annotated[str, typer.Option(help="playtable or calvin.")] = "playtable",
    scene: Annotated[str, typer.Option(help="CALVIN scene.")] = "D",
    looks: Annotated[Looks | None, typer.Option(help=LOOKS_HELP)] = None,
    renderer: Annotated[Renderer | None, typer.Option(help=RENDERER_HELP)] = None,
    chain_length: Annotated[
        int, typer.Option(min=1, help="Tasks that follow each other without a reset, sampled from --tasks.")
    ] = 1,
    at_spots: Annotated[
        bool, typer.Option("--at-spots", help="Begin with the blocks near where CALVIN's chains have them.")
    ] = False,
    action_noise: Annotated[
        float, typer.Option(help="Push the arm off its path: noise on executed actions, 0 to 1; labels stay clean.")
    ] = 0.0,
    noise_share: Annotated[float | None, typer.Option(help="Part of the steps with noise; default 0.3.")] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            callback=bundle_folder,
            help="Bundle that drives while the experts label what they would have done, or until they take over.",
        ),
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="Loop of the policy: closed-loop, open-loop or jump-step; default: as it was trained.")
    ] = None,
    execute_steps: Annotated[
        int | None, typer.Option(help="Actions the policy plays per inference; default: as it was trained.")
    ] = None,
    expert_share: Annotated[
        float | None, typer.Option(help="Part of the tasks that the expert drives in spite of --policy; default 0.")
    ] = None,
    takeover_steps: Annotated[
        int | None,
        typer.Option(
            help="The policy drives each task for so many steps at most, sampled each time; then the expert takes over, "
            "and its part alone is recorded."
        ),
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(help="Control steps per task with --policy, default 360; more than 64 become several segments."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all options and the renderer; write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as one JSON document.")] = False,
) -> int:
    """Collect demonstrations with scripted experts; resumable, and the same for any number of workers."""
    if context.invoked_subcommand is not None:
        return 0
    from rfedge.errors import ConfigError

    if output is None:
        raise ConfigError("--output", got="nothing", expected="a dataset folder to write", remedy="Add --output DIR.")
    from rfedge.benchmarks.success.demonstrations import MAX_FRAMES
    from rfedge.cli.demos.recording import Recorder
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.stopped import kept_when_stopped
    from rfedge.data.collection.collect import CollectionRequest, collect
    from rfedge.runtimes.control.limits import MAX_STEPS

    chosen = _tasks(tasks)
    limit = MAX_FRAMES if policy is None else MAX_STEPS if max_steps is None else max_steps
    options = _options(
        chosen, chain_length, action_noise, noise_share, limit, expert_share, takeover_steps, at_spots=at_spots
    )
    driven = _policy(
        policy,
        mode=mode,
        execute_steps=execute_steps,
        expert_share=expert_share,
        takeover_steps=takeover_steps,
        max_steps=max_steps,
    )
    recorder = Recorder(env, scene, options, driven, looks, renderer)
    request = CollectionRequest(
        chosen,
        episodes_per_task,
        seed=seed,
        scene=scene,
        frames_per_episode=options.max_frames,
        keep_failures=driven is not None and takeover_steps is None,
    )
    request.check()
    # Before anything is written: a wrong scene, a missing renderer or a damaged bundle ends here.
    settings, versions = recorder.describe(chosen, keep_open=workers == 1 and not dry_run)
    request = dataclasses.replace(request, recording=settings)
    if dry_run:
        print(f"ready: {episodes_per_task} episodes each of {', '.join(chosen)} -> {output}; nothing was written")
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
    _print(result, several=chain_length > 1 or driven is not None, to_stderr=as_json)
    if as_json:
        print(json.dumps({**dataclasses.asdict(result), "folder": str(result.folder)}))
    # A dataset without one of its tasks is not what was asked for; single missing episodes are.
    return 1 if any(not row.episodes for row in result.tasks) else 0


def _print(result: CollectionResult, *, several: bool, to_stderr: bool) -> None:
    """Print one row a task; `several`: an episode may hold more than one segment, or one that was not solved."""
    from rfedge.cli.show.tables import print_table

    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    if several:  # what fits into 80 columns
        columns = ("task", "episodes", "segments", "solved", "frames", "missing")
        rows = [(row.task, row.episodes, row.segments, row.solved, row.frames, row.missing) for row in result.tasks]
    else:
        columns = ("task", "episodes", "frames", "mean length", "retries", "missing")
        rows = [
            (row.task, row.episodes, row.frames, f"{row.mean_frames:.1f}", row.retries, row.missing) for row in result.tasks
        ]
    print_table(str(result.folder), columns, rows, to_stderr=to_stderr)


def _options(
    tasks: tuple[str, ...],
    chain_length: int,
    action_noise: float,
    noise_share: float | None,
    max_steps: int,
    expert_share: float | None,
    takeover_steps: int | None,
    *,
    at_spots: bool,
) -> RecordingOptions:
    from rfedge.benchmarks.success.demonstrations import RecordingOptions
    from rfedge.envs.action_noise import ActionNoise

    noise = None
    if action_noise:
        noise = ActionNoise(action_noise) if noise_share is None else ActionNoise(action_noise, noise_share)
    elif noise_share is not None:
        _refuse_alone("--noise-share", "--action-noise")
    options = RecordingOptions(
        noise=noise,
        chain_length=chain_length,
        chain_tasks=tasks,
        max_steps=max_steps,
        expert_share=expert_share or 0.0,
        at_spots=at_spots,
        takeover_steps=takeover_steps,
    )
    options.check()
    return options


def _policy(bundle: Path | None, *, mode: str | None, execute_steps: int | None, **others: object) -> PolicyLoop | None:
    """Return the policy that drives; raises ConfigError for an option that means nothing without one."""
    if bundle is None:
        for name, value in {"mode": mode, "execute_steps": execute_steps, **others}.items():
            if value is not None:
                _refuse_alone(f"--{name.replace('_', '-')}", "--policy")
        return None
    from rfedge.runtimes.rollout.policy_source import PolicyLoop

    return PolicyLoop(bundle, mode, execute_steps)


def _refuse_alone(option: str, needed: str) -> None:
    from rfedge.errors import ConfigError

    raise ConfigError(option, got=f"no {needed}", expected="both or neither", remedy=f"Add {needed}.")


def _tasks(text: str) -> tuple[str, ...]:
    """Names in `text`; raises ConfigError for one that is unknown."""
    from rfedge.envs.experts import EXPERT_TASKS
    from rfedge.envs.tasks import check_task

    if text == "all":
        return EXPERT_TASKS
    return tuple(check_task(name.strip()) for name in text.split(",") if name.strip())
