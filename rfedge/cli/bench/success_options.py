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
    from rfedge.jobs.processes import JobRunner

Num = Annotated[int, typer.Option(min=0, help="Number of evaluation chains, from the first of CALVIN's 1000; 0 for none.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes; the result does not depend on it.")]


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


def kept_note(output: Path | None) -> str:
    """Return what a measurement that is stopped says of what was finished."""
    return f"what was finished is in {output}, the same command goes on" if output else "nothing was kept without --output"


@contextmanager
def open_workers(ray: str | None, workers: int) -> Iterator[tuple[JobRunner, str]]:
    """Yield where jobs run, and what reports call it."""
    from rfedge.jobs.processes import run_jobs
    from rfedge.jobs.ray import RayWorkers

    if ray is None:
        yield run_jobs, "processes"
        return
    with RayWorkers(ray, workers) as cluster:
        yield cluster, "ray"
