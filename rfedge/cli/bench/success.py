"""`rfedge bench success`: whether compiled policies still do CALVIN's chains and tasks, and how fast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rfedge.benchmarks.success.plan import SuccessPlan
from rfedge.benchmarks.success.sweep import SweepPlan, SweepReport, finish_sweep
from rfedge.cli.options import AsJson, plan_of, with_options
from rfedge.envs.interface import ENVIRONMENTS
from rfedge.envs.looks import LOOKS_HELP, RENDERER_HELP, Looks, Renderer
from rfedge.jobs.processes import JobRunner, run_jobs
from rfedge.records.plan import Option
from rfedge.runtimes.rollout.rollout_session import Simulator

if TYPE_CHECKING:
    from rfedge.benchmarks.success.expert_success import ExpertSuccessReport

_CHAINS: Final = "Chains and tasks"
_PRECISIONS: Final = "A checkpoint in several precisions"
_EXPERTS: Final = "Scripted experts"
_MACHINE: Final = "Machine"


@dataclass(frozen=True)
class Worlds:
    env: Annotated[str, Option("Environment: playtable or calvin.", panel="Chains and tasks", choices=ENVIRONMENTS)] = (
        "playtable"
    )
    scenes: Annotated[tuple[str, ...], Option("CALVIN scene, repeatable; the benchmark is scene D.", flag="--scene")] = ()
    looks: Annotated[Looks | None, Option(LOOKS_HELP)] = None
    renderer: Annotated[Renderer | None, Option(RENDERER_HELP)] = None

    def simulators(self, *, render: bool = True) -> tuple[Simulator, ...]:
        scenes = self.scenes or ("D",)
        return tuple(Simulator(self.env, scene, render, looks=self.looks, renderer=self.renderer) for scene in scenes)


@with_options(SuccessPlan, Worlds, SweepPlan)
def success(
    policies: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Bundle folders or shipped policies; the first is what the others are compared with. With --precisions "
            "checkpoint folders or shipped policies."
        ),
    ] = None,
    precisions: Annotated[
        str | None,
        typer.Option(
            help="Measure a checkpoint in these precisions, with commas between, or all: fp32, fp16, bf16, int8, "
            "int8-weight, int4-weight, mixed, nf4, llm-int8. Missing bundles are exported to OUTPUT.bundles; bf16, nf4 and "
            "llm-int8 run in PyTorch. Each is compared with fp32 in the same loop; then latency and memory are measured.",
            rich_help_panel=_PRECISIONS,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="With --precisions: demonstrations to export with; scripted experts collect some for a shipped one.",
            rich_help_panel=_PRECISIONS,
        ),
    ] = None,
    mixed_budget: Annotated[
        str, typer.Option(help="With --precisions: budget of mixed.", rich_help_panel=_PRECISIONS)
    ] = "action_error=0.05",
    num: Annotated[
        int, typer.Option(min=0, help="Number of evaluation chains, from the first of CALVIN's 1000; 0 for none.")
    ] = 200,
    enriched: Annotated[
        bool, typer.Option("--enriched", help="Add rows with held-out instructions.", rich_help_panel=_CHAINS)
    ] = False,
    expert: Annotated[
        bool,
        typer.Option(
            "--expert",
            help="Measure the scripted experts instead of policies: in chains, or with --single-tasks task by task.",
            rich_help_panel=_EXPERTS,
        ),
    ] = False,
    anywhere: Annotated[
        bool,
        typer.Option(
            "--anywhere",
            help="With --expert: blocks start anywhere in CALVIN's area, not just where one window is enough.",
            rich_help_panel=_EXPERTS,
        ),
    ] = False,
    assert_success: Annotated[
        bool,
        typer.Option(
            "--assert-success",
            help="With --expert: fail unless 30 tasks reach 95 % and all of them 80 %.",
            rich_help_panel=_EXPERTS,
        ),
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result does not depend on it.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Run in a Ray cluster: local, auto, HOST:PORT or ray://HOST:PORT; needs the 'scale' extra.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="With several --execute-steps: plot to this file; with --output it is also sweep.png there."),
    ] = None,
    assert_average_length: Annotated[
        float | None, typer.Option(help="Fail unless every row's average length is at least this.")
    ] = None,
    assert_share: Annotated[
        float | None, typer.Option(help="Fail unless every other row keeps at least this share of its reference's success.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for records and report; repeat the command to go on after a stop.")
    ] = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    from rfedge.benchmarks.success import report as library
    from rfedge.benchmarks.success.run import run_success
    from rfedge.cli.show.progress import kept_when_stopped, round_progress, stage_progress
    from rfedge.cli.show.tables import show_report
    from rfedge.envs.chains import make_chains
    from rfedge.errors import ConfigError
    from rfedge.io.plotting import check_matplotlib
    from rfedge.policies import find_bundle

    if expert == bool(policies):
        got = "policies and --expert" if expert else "neither policies nor --expert"
        raise ConfigError("what to measure", got=got, expected="one of them", remedy="Name bundles, or pass --expert.")
    if expert:
        measure_experts(given, num=num, anywhere=anywhere, gated=assert_success, workers=workers, output=output)
        return
    if plot is not None:
        check_matplotlib("--plot")
    languages = ("evaluation", "enriched") if enriched else ("evaluation",)
    fixed: dict[str, Any] = {"worlds": plan_of(Worlds, given).simulators(), "languages": languages}
    found = policies or []
    if precisions is not None:
        prepared = prepare_table(found, precisions, output=output, data=data, mixed_budget=mixed_budget)
        fixed |= {key: value for key, value in prepared.items() if key != "labels" or not given["label"]}
    else:
        fixed["bundles"] = tuple(map(find_bundle, found))
    plan = plan_of(SuccessPlan, given, **fixed)
    is_timed = precisions is not None or len(plan.execute_steps) > 1
    sweep = plan_of(SweepPlan, given, success=plan) if is_timed else None
    with (
        kept_when_stopped(kept_note(output)),
        open_workers(ray, workers) as (runner, executor),
        stage_progress() as progress,
    ):
        report = run_success(
            plan if sweep is None else sweep.success,
            make_chains(num, on_progress=partial(progress, "sampling chains")) if num else (),
            output,
            workers=workers,
            runner=runner,
            executor=executor,
            on_progress=partial(progress, "rollouts"),
        )
    if sweep is None:
        show_report(report)
    else:
        with round_progress() as on_round:  # with nothing beside it
            joined = finish_sweep(sweep, report, output, on_round=on_round)
        if precisions is None:
            _plot(joined, plot, output)
        show_report(joined)
    # Last, so that the numbers behind a failed gate are on the screen.
    if assert_average_length is not None:
        library.assert_average_length(report, assert_average_length)
    if assert_share is not None:
        library.assert_share(report, assert_share)


def kept_note(output: Path | None) -> str:
    """Return what a measurement that is stopped says of what was finished."""
    return f"what was finished is in {output}, the same command goes on" if output else "nothing was kept without --output"


@contextmanager
def open_workers(ray: str | None, workers: int) -> Iterator[tuple[JobRunner, str]]:
    """Yield where jobs run, and what reports call it."""
    from rfedge.jobs.ray import RayWorkers

    if ray is None:
        yield run_jobs, "processes"
        return
    with RayWorkers(ray, workers) as cluster:
        yield cluster, "ray"


def _plot(report: SweepReport, plot: Path | None, output: Path | None) -> None:
    from rfedge.benchmarks.report.build import plot_record
    from rfedge.benchmarks.success.sweep import PLOT_FILE
    from rfedge.io.plotting import has_matplotlib

    for picture in (plot, None if output is None or not has_matplotlib() else output / PLOT_FILE):
        if picture is not None:
            plot_record(report.format, report.model_dump(mode="json"), picture)


_TASKS_FILE = "experts.json"


def measure_experts(
    given: Mapping[str, Any], *, num: int, anywhere: bool, gated: bool, workers: int, output: Path | None
) -> None:
    """Run the experts task by task where `--single-tasks` asks for it, else in chains; they render nothing."""
    from rfedge.benchmarks.success import expert_success
    from rfedge.benchmarks.success.chains import ChainPlan, run_chains
    from rfedge.benchmarks.success.plan import parse_tasks
    from rfedge.cli.options import plan_of
    from rfedge.cli.show.progress import kept_when_stopped, stage_progress
    from rfedge.cli.show.tables import show_report, write_report
    from rfedge.envs.chains import make_chains
    from rfedge.envs.experts import EXPERT_TASKS
    from rfedge.errors import ConfigError
    from rfedge.runtimes.rollout.rollout_session import expert_agent

    world, *others = plan_of(Worlds, given).simulators(render=False)
    if others:
        raise ConfigError("--scene", got=f"{1 + len(others)} scenes", expected="one with --expert", remedy="Name one.")
    if given["single_tasks"]:
        plan = expert_success.ExpertSuccessPlan(
            env=world.name,
            scene=world.scene,
            tasks=parse_tasks(given["tasks"], EXPERT_TASKS),
            episodes=given["single_tasks"],
            limit_steps=given["max_steps"],
            seed=given["seed"],
            anywhere=anywhere,
        )
        with stage_progress() as progress:
            tasks = expert_success.run_expert_success(plan, workers=workers, on_task=partial(progress, "tasks"))
        _print_tasks(tasks)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
        write_report(tasks, None if output is None else output / _TASKS_FILE)
        if gated:
            expert_success.assert_success(tasks)  # last, so that the numbers behind a failed gate are on the screen
        return
    chain_plan = ChainPlan(
        make_agent=expert_agent, agent_name="expert", world=world, max_steps=given["max_steps"], seed=given["seed"]
    )
    with kept_when_stopped(kept_note(output)), stage_progress() as progress:
        sampled = make_chains(num, on_progress=partial(progress, "sampling chains"))
        chains = run_chains(chain_plan, sampled, output, workers=workers, on_chain=partial(progress, "chains"))
    show_report(chains)


def _print_tasks(report: ExpertSuccessReport) -> None:
    from rfedge.cli.show.tables import print_table, say

    rows = []
    for task, score in report.tasks.items():
        steps = "" if score.median_steps is None else f"{score.median_steps:.0f}"
        failed = " ".join(map(str, score.failed_seeds))
        rows.append((task, f"{score.success.successes}/{score.success.n}", score.within_window, steps, failed))
    columns = ("task", "solved", "within 64", "median steps", "failed seeds")
    print_table(f"experts in {report.environment}, scene {report.scene}", columns, rows)
    worst = min(score.success.value for score in report.tasks.values())
    say(
        f"{report.num_nearly_always} of {len(report.tasks)} tasks at 95 % or more, the least at {worst:.0%}; "
        f"{report.episodes} starts per task, at most {report.limit_steps} steps; {report.wall_seconds:.1f} s"
    )


def prepare_table(
    checkpoints: Sequence[Path], precisions: str, *, output: Path | None, data: Path | None, mixed_budget: str
) -> dict[str, Any]:
    """Export what is missing beside `output`, behind progress bars, and return the rows as fields of a `SuccessPlan`."""
    from rfedge.benchmarks.success.precision_bundles import parse_table_precisions, prepare_policies, rows_of
    from rfedge.cli.demos.expert_demonstrations import expert_demonstrations
    from rfedge.cli.show.progress import kept_when_stopped, stage_progress
    from rfedge.errors import ConfigError
    from rfedge.export.mixed.plan import parse_budget
    from rfedge.model.bitsandbytes_weights import WEIGHT_FORMATS, import_bitsandbytes
    from rfedge.policies import find_bundle, find_checkpoint, is_shipped

    if output is None:
        remedy = "Pass --output; bundles go beside it."
        raise ConfigError("--precisions", got="no --output", expected="a folder", remedy=remedy)
    names, budget = parse_table_precisions(precisions), parse_budget(mixed_budget)
    if any(name in WEIGHT_FORMATS for name in names):
        import_bitsandbytes()  # what is missing is said before hours of rollouts
    for path in checkpoints:
        if data is None and not is_shipped(path):
            remedy = "Pass --data DIR."
            raise ConfigError(f"checkpoint {path}", got="no --data", expected="demonstrations to export with", remedy=remedy)
    folder = output.with_name(output.name + ".bundles")
    found = {}
    kept = f"finished bundles are in {folder}, the same command goes on"
    with kept_when_stopped(kept), stage_progress() as progress:

        def demonstrations() -> tuple[Path, str | None]:
            if data is not None:
                return data, None
            collected = expert_demonstrations(progress)
            return collected.folder, collected.description

        for path in checkpoints:
            shipped = find_bundle(path) if is_shipped(path) else None
            # Training runs all call theirs `checkpoint`.
            name = path.parent.name if path.name == "checkpoint" else path.name
            place = folder / name if len(checkpoints) > 1 else folder
            found[name] = prepare_policies(
                find_checkpoint(path), place, names, budget, demonstrations, shipped=shipped, progress=progress
            )
    return rows_of(found)
