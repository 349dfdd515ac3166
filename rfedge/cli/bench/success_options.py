"""What `rfedge bench success` and `rfedge bench sweep` share: their flags, and how flags become a plan and workers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from rfedge.cli.bundle_names import bundle_folder
from rfedge.envs.looks import LOOKS_HELP, RENDERER_HELP, Looks, Renderer

if TYPE_CHECKING:
    from rfedge.benchmarks.success.plan import SuccessPlan
    from rfedge.benchmarks.success.report import Kind, SuccessReport
    from rfedge.jobs.processes import JobRunner
    from rfedge.runtimes.rollout.policy_source import TorchPolicy

__all__ = [
    "AsJson",
    "Backend",
    "Bundles",
    "Enriched",
    "Ensembles",
    "Env",
    "Kinds",
    "Labels",
    "LeastLength",
    "LeastShare",
    "MaxSteps",
    "Mode",
    "Num",
    "Output",
    "Provider",
    "Ray",
    "Scenes",
    "Seed",
    "SingleTasks",
    "Tasks",
    "Threads",
    "TrainedOn",
    "Workers",
    "check_gates",
    "make_plan",
    "measure",
]

Bundles = Annotated[
    list[Path],
    typer.Argument(
        callback=bundle_folder, help="Bundle folders or shipped policies; the first is what the others are compared with."
    ),
]
Labels = Annotated[list[str] | None, typer.Option("--label", help="What rows call a bundle; once for each, in order.")]
TrainedOn = Annotated[
    list[str] | None,
    typer.Option(help="What a bundle was trained on, such as A,B,C, where it does not say; once for each, in order."),
]
Mode = Annotated[
    str | None, typer.Option(help="closed-loop, open-loop or jump-step; default: what fits the steps and the training.")
]
Kinds = Annotated[
    str | None,
    typer.Option(
        help="Only these rows, with commas between: closed-loop and jump-step (run as trained), open-loop (trained on every "
        "frame, run with more steps a call), other."
    ),
]
Num = Annotated[int, typer.Option(min=0, help="The first so many of CALVIN's 1000 chains; 0 for none.")]
SingleTasks = Annotated[int, typer.Option(min=0, help="Besides chains, prepared starts of every task; 0 for none.")]
Tasks = Annotated[str, typer.Option(help="With --single-tasks: `all`, or names with commas between.")]
Ensembles = Annotated[
    str,
    typer.Option(
        "--ensemble",
        help="Where chunks overlap, play the weighted mean of what they say: decays with commas between, 0 weighs "
        "all alike, below 0 newer ones more; `none` plays the newest chunk. Each is a row.",
    ),
]
Enriched = Annotated[bool, typer.Option("--enriched", help="Add rows with held-out instructions.")]
Env = Annotated[str, typer.Option(help="Environment: playtable or calvin.")]
LooksChoice = Annotated[Looks | None, typer.Option("--looks", help=LOOKS_HELP)]
RendererChoice = Annotated[Renderer | None, typer.Option("--renderer", help=RENDERER_HELP)]
Scenes = Annotated[list[str] | None, typer.Option("--scene", help="CALVIN scene, repeatable; the benchmark is scene D.")]
MaxSteps = Annotated[int, typer.Option(min=1, help="Control steps for each task.")]
Seed = Annotated[
    int,
    typer.Option(min=0, help="Of instructions and intervals, and number of the first start, see `rfedge run --seed`."),
]
Workers = Annotated[int, typer.Option(min=1, help="Processes; the result does not depend on it.")]
Ray = Annotated[
    str | None,
    typer.Option(help="Run in a Ray cluster: local, auto, HOST:PORT or ray://HOST:PORT; needs the 'scale' extra."),
]
Threads = Annotated[int, typer.Option(min=0, help="Threads of a policy in each worker; 0 is the backend's own choice.")]
Backend = Annotated[str, typer.Option(help="What runs the bundles: onnxruntime, openvino or tensorrt.")]
Provider = Annotated[str, typer.Option(help="Of onnxruntime: cpu, cuda, tensorrt or openvino.")]
LeastLength = Annotated[float | None, typer.Option(help="Fail unless every row's average length is at least this.")]
LeastShare = Annotated[
    float | None, typer.Option(help="Fail unless every other row keeps at least this share of its reference's success.")
]
Output = Annotated[
    Path | None, typer.Option(help="Folder for records and report; repeat the command to go on after a stop.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, the rest on stderr.")]


def make_plan(
    bundles: Sequence[Path],
    labels: Sequence[str] | None,
    trained_on: Sequence[str] | None,
    *,
    torch: Sequence[TorchPolicy] = (),
    pairing: Literal["first", "same-loop"] = "first",
    execute_steps: str | None,
    ensemble: str,
    mode: str | None,
    kinds: str | None,
    enriched: bool,
    env: str,
    scenes: Sequence[str] | None,
    looks: Looks | None,
    renderer: Renderer | None,
    single_tasks: int,
    tasks: str,
    max_steps: int,
    seed: int,
    threads: int,
    backend: str,
    provider: str,
) -> SuccessPlan:
    """Return the plan that the flags mean.

    Raises:
        ConfigError: a flag's value is not possible.
    """
    from rfedge.benchmarks.success.chains import Simulator
    from rfedge.benchmarks.success.plan import SuccessPlan
    from rfedge.envs.tasks import TASKS, check_task
    from rfedge.runtimes import RuntimeSettings
    from rfedge.runtimes.backends.ort_providers import parse_provider

    names = TASKS if tasks == "all" else tuple(name.strip() for name in tasks.split(",") if name.strip())
    for name in names:
        check_task(name)
    return SuccessPlan(
        bundles=tuple(bundles),
        torch=tuple(torch),
        pairing=pairing,
        labels=tuple(labels or ()),
        trained_on=tuple(trained_on or ()),
        execute_steps=() if execute_steps is None else _parse_steps(execute_steps),
        ensembles=_parse_decays(ensemble),
        mode=mode,
        kinds=tuple(cast("Kind", kind.strip()) for kind in (kinds or "").split(",") if kind.strip()),
        worlds=tuple(Simulator(env, scene, looks=looks, renderer=renderer) for scene in scenes or ("D",)),
        languages=("evaluation", "enriched") if enriched else ("evaluation",),
        starts_per_task=single_tasks,
        tasks=names,
        max_steps=max_steps,
        seed=seed,
        backend=backend,
        settings=RuntimeSettings(threads=threads, providers=parse_provider(provider)),
    )


def measure(plan: SuccessPlan, *, num: int, output: Path | None, workers: int, ray: str | None) -> SuccessReport:
    """Run the plan on the first `num` chains behind a progress bar.

    Raises:
        BackendUnavailableError: Ray is not installed or not there.
    """
    from rfedge.benchmarks.success.run import run_success
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.stopped import kept_when_stopped
    from rfedge.envs.chains import make_chains

    kept = f"what was finished is in {output}, the same command goes on" if output else "nothing was kept without --output"
    with (
        kept_when_stopped(kept),
        _open_workers(ray, workers) as (runner, executor),
        stage_progress() as progress,
    ):
        chains = make_chains(num, on_progress=lambda done, total: progress("drawing chains", done, total)) if num else ()
        return run_success(
            plan,
            chains,
            output,
            workers=workers,
            runner=runner,
            executor=executor,
            on_progress=lambda done, total: progress("rollouts", done, total),
        )


def check_gates(report: SuccessReport, least_length: float | None, least_share: float | None) -> None:
    """Hold the report to what was asked for; last in a command, so that the numbers behind a failed gate are seen."""
    from rfedge.benchmarks.success.report import assert_average_length, assert_share

    if least_length is not None:
        assert_average_length(report, least_length)
    if least_share is not None:
        assert_share(report, least_share)


@contextmanager
def _open_workers(ray: str | None, workers: int) -> Iterator[tuple[JobRunner, str]]:
    """Yield where jobs run, and what reports call it."""
    from rfedge.jobs.processes import run_jobs
    from rfedge.jobs.ray import RayWorkers

    if ray is None:
        yield run_jobs, "processes"
        return
    with RayWorkers(ray, workers) as cluster:
        yield cluster, "ray"


def _parse_steps(text: str) -> tuple[int, ...]:
    from rfedge.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            "--execute-steps", got=repr(text), expected="whole numbers", remedy="Put commas between: 1,4."
        ) from None


def _parse_decays(text: str) -> tuple[float | None, ...]:
    from rfedge.errors import ConfigError

    try:
        decays = tuple(None if part.strip() == "none" else float(part) for part in text.split(","))
    except ValueError:
        decays = (math.nan,)
    if not all(decay is None or math.isfinite(decay) for decay in decays):
        raise ConfigError(
            "--ensemble", got=repr(text), expected="finite numbers or none", remedy="Put commas between: none,0."
        )
    return decays
