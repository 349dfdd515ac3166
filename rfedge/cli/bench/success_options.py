"""How `rfedge bench success` finds its worlds and workers, and what its numbers are held to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfedge.envs.interface import ENVIRONMENTS
from rfedge.envs.looks import LOOKS_HELP, RENDERER_HELP, Looks, Renderer
from rfedge.records.plan import Option
from rfedge.runtimes.rollout.rollout_session import Simulator

if TYPE_CHECKING:
    from rfedge.benchmarks.success.plan import SuccessPlan
    from rfedge.benchmarks.success.report import SuccessReport
    from rfedge.jobs.processes import JobRunner

Num = Annotated[int, typer.Option(min=0, help="Number of evaluation chains, from the first of CALVIN's 1000; 0 for none.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes; the result does not depend on it.")]


@dataclass(frozen=True)
class Worlds:
    """Where a measurement of success takes place."""

    env: Annotated[str, Option("Environment: playtable or calvin.", panel="Chains and tasks", choices=ENVIRONMENTS)] = (
        "playtable"
    )
    scenes: Annotated[tuple[str, ...], Option("CALVIN scene, repeatable; the benchmark is scene D.", flag="--scene")] = ()
    looks: Annotated[Looks | None, Option(LOOKS_HELP)] = None
    renderer: Annotated[Renderer | None, Option(RENDERER_HELP)] = None

    def simulators(self, *, render: bool = True) -> tuple[Simulator, ...]:
        """Return one for each scene."""
        scenes = self.scenes or ("D",)
        return tuple(Simulator(self.env, scene, render, looks=self.looks, renderer=self.renderer) for scene in scenes)


def kept_note(output: Path | None) -> str:
    """Return what a measurement that is stopped says of what was finished."""
    return f"what was finished is in {output}, the same command goes on" if output else "nothing was kept without --output"


def measure(plan: SuccessPlan, *, num: int, output: Path | None, workers: int, ray: str | None) -> SuccessReport:
    """Run the plan on the first `num` chains behind a progress bar.

    Raises:
        BackendUnavailableError: Ray is not installed or not there.
    """
    from rfedge.benchmarks.success.run import run_success
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.stopped import kept_when_stopped
    from rfedge.envs.chains import make_chains

    with (
        kept_when_stopped(kept_note(output)),
        _open_workers(ray, workers) as (runner, executor),
        stage_progress() as progress,
    ):
        chains = make_chains(num, on_progress=lambda done, total: progress("sampling chains", done, total)) if num else ()
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
