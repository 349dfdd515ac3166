"""`rfedge run`: drive a simulator with a bundle and say how often it succeeded, how long it took and how fast it was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from rfedge.benchmarks.rollouts import RolloutPlan, RolloutReport

__all__ = ["run"]


def run(
    bundle: Annotated[Path, typer.Argument(help="Folder written by `rfedge export`.")],
    mode: Annotated[str, typer.Option(help="closed-loop or open-loop.")] = "closed-loop",
    execute_steps: Annotated[
        int | None,
        typer.Option(help="Actions played per inference; default 1 in closed loop, the whole chunk in open loop."),
    ] = None,
    env: Annotated[str, typer.Option(help="playtable, or calvin where calvin_env is installed.")] = "playtable",
    scene: Annotated[str, typer.Option(help="Table layout, A to D.")] = "D",
    task: Annotated[str | None, typer.Option(help="Task to do and to judge, for instance open_drawer.")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Words for the policy; judged if they describe a known task.")
    ] = None,
    episodes: Annotated[int, typer.Option(help="Episodes, with seeds SEED, SEED + 1, ...")] = 1,
    max_steps: Annotated[int, typer.Option(help="Control steps per episode.")] = 120,
    seed: Annotated[int, typer.Option(help="Seed of the first episode.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads of the policy; 0 is all physical cores.")] = 0,
    backend: Annotated[str, typer.Option(help="onnxruntime, or openvino where it is installed.")] = "onnxruntime",
    video: Annotated[Path | None, typer.Option(help="Write what the cameras saw to this .gif or .mp4.")] = None,
    realtime: Annotated[bool, typer.Option("--realtime", help="Hold the control rate on the wall clock.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, the rest on stderr.")] = False,
) -> None:
    """Run a bundle in a simulator, closed loop or open loop."""
    from rich.console import Console

    from rfedge.benchmarks.rollouts import RolloutPlan
    from rfedge.runtimes import RuntimeSettings

    plan = RolloutPlan(
        bundle=bundle,
        mode=mode,
        execute_steps=execute_steps,
        env=env,
        scene=scene,
        task=task,
        instruction=instruction,
        episodes=episodes,
        max_steps=max_steps,
        seed=seed,
        realtime=realtime,
        video=video,
        settings=RuntimeSettings(threads=threads),
        backend=backend,
    )
    report = _run_with_progress(plan)
    _print(Console(stderr=as_json), report, video)
    if as_json:
        typer.echo(report.model_dump_json())


def _run_with_progress(plan: RolloutPlan) -> RolloutReport:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from rfedge.benchmarks.rollouts import run_rollouts
    from rfedge.runtimes.control import StepReport

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("run", total=plan.episodes * plan.max_steps)

        def advance(episode: int, step: StepReport) -> None:
            # Set, not advanced: an episode that succeeds early fills its share at once.
            done = episode * plan.max_steps + step.index + 1
            progress.update(bar, completed=done, description=f"episode {episode + 1} of {plan.episodes}")

        return run_rollouts(plan, on_step=advance)


def _print(console: Console, report: RolloutReport, video: Path | None) -> None:
    from rich.table import Table

    console.print(
        f"{report.policy} {report.precision}, {report.mode}, {report.execute_steps} of each chunk; "
        f"{report.environment} scene {report.scene}, renderer {report.renderer}",
        highlight=False,
        soft_wrap=True,
    )
    if report.task is None:
        console.print(f"instruction {report.instruction!r} names no known task: nobody judges success", highlight=False)
    else:
        console.print(f"task {report.task}: {report.instruction!r}", highlight=False, soft_wrap=True)
    outcome = {True: "success", False: "failure", None: "not judged"}
    for episode in report.episodes:
        late = f", {episode.num_late} late (up to {episode.max_lag_ms:.1f} ms)" if report.realtime else ""
        console.print(
            f"seed {episode.seed}: {outcome[episode.success]}, {episode.num_steps} steps, "
            f"{episode.num_inferences} inferences{late}",
            highlight=False,
        )
    if report.num_successes is not None:
        console.print(f"{report.num_successes} of {len(report.episodes)} episodes succeeded", highlight=False)
    table = Table(title="milliseconds per policy call")
    table.add_column("stage")
    for name in ("p50", "p90", "p99", "max", "mean per control step"):
        table.add_column(name, justify="right")
    for stage, summary in report.per_call_ms.items():
        numbers = (summary.p50, summary.p90, summary.p99, summary.max, report.mean_per_control_step_ms[stage])
        table.add_row(stage, *(f"{number:.3f}" for number in numbers))
    console.print(table)
    if video is not None:
        console.print(f"video: {video}", highlight=False, soft_wrap=True)
