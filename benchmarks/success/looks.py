"""Compares what PlayTable shows with what CALVIN's own simulator shows, pixel by pixel in equal states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np

from rfedge.data.statistics import evenly_spaced
from rfedge.envs import make_environment
from rfedge.envs.experts import EXPERT_TASKS, prepare_start
from rfedge.envs.interface import CAMERAS, Camera, Float64Array
from rfedge.envs.looks import RENDERER_HELP, Looks, Renderer, check_looks, redress
from rfedge.errors import BackendUnavailableError, GateError
from rfedge.io.atomic import atomic_file
from rfedge.jobs.progress import Count
from rfedge.messages import Observation, UInt8Array
from rfedge.records.machine import Measurement, provenance
from rfedge.records.plan import Option, check_least
from rfedge.records.record import Record

# A state is a moment of an expert's work: most tasks are done within so many control steps.
MAX_MOMENT: Final = 50
SHEET_ROWS: Final = 6
TILE: Final = 240  # pixels a side
GAP: Final = 4


@dataclass(frozen=True)
class LooksPlan:
    looks: Annotated[
        tuple[Looks, ...], Option("Looks of PlayTable, with commas between: playtable, random, calvin.", commas=True)
    ] = ("playtable",)
    scene: Annotated[str, Option("Table layout, A to D.")] = "D"
    # each of another task while there are any
    states: Annotated[int, Option("Moments of experts at work in the real simulator.")] = 20
    seed: Annotated[int, Option("Seed of tasks, starts and moments.", min=0)] = 0
    renderer: Annotated[Renderer, Option(RENDERER_HELP)] = "egl"

    def __post_init__(self) -> None:
        check_least(1, {"states": self.states, "looks": len(self.looks)})
        for looks in self.looks:
            check_looks(looks)


@dataclass(frozen=True, slots=True, eq=False)
class RenderedState:
    """One state and its pictures: of the real simulator, and of PlayTable by looks."""

    task: str
    robot_obs: Float64Array
    scene_obs: Float64Array
    real: Observation
    playtable: dict[Looks, Observation]


class PictureDifference(Record):
    """Mean absolute difference over pixels and colours, in grey levels of 256."""

    mean: float
    states: tuple[float, ...]


class LooksReport(Measurement):
    format: Literal["rfedge-looks"] = "rfedge-looks"
    schema_version: int = 1
    simulator_versions: dict[str, str]
    scene: str
    # real_renderer, renderer: what drew the real pictures, and PlayTable's
    real_renderer: str
    renderer: str
    seed: int
    tasks: tuple[str, ...]  # whose expert was at work in each state
    differences: dict[str, dict[str, PictureDifference]]  # by looks, then by camera


def run_looks(plan: LooksPlan, *, on_state: Count = lambda *_: None) -> tuple[LooksReport, list[RenderedState]]:
    """Render every state in the real simulator and in PlayTable, and compare; `on_state` counts a state once per look.

    Raises:
        ConfigError: the scene is unknown.
        BackendUnavailableError: calvin_env, MuJoCo or a renderer is missing.
    """
    total = plan.states * (1 + len(plan.looks))
    states: list[RenderedState] = []
    rng = np.random.default_rng(plan.seed)
    order = [str(task) for task in rng.permutation(EXPERT_TASKS)]
    with make_environment("calvin", scene=plan.scene, renderer=plan.renderer) as real:
        for index in range(plan.states):
            task = order[index % len(order)]
            expert = prepare_start(task, real, int(rng.integers(2**31)))
            for _ in range(int(rng.integers(MAX_MOMENT))):
                real.advance(expert.act(real.robot_state(), real.scene_state()))
            states.append(RenderedState(task, real.robot_state(), real.scene_state(), real.observe(), {}))
            on_state(len(states), total)
        real_renderer, simulator_versions = real.renderer, dict(getattr(real, "versions", {}))
    renderer = ""
    for place, looks in enumerate(plan.looks, 1):
        with make_environment("playtable", scene=plan.scene, looks=looks, seed=plan.seed) as ours:
            renderer = ours.renderer
            for index, state in enumerate(states):
                redress(ours, (plan.seed, index))
                state.playtable[looks] = ours.reset(state.robot_obs, state.scene_obs)
                on_state(place * plan.states + index + 1, total)
    report = LooksReport(
        **provenance(),
        simulator_versions=simulator_versions,
        scene=plan.scene,
        real_renderer=real_renderer,
        renderer=renderer,
        seed=plan.seed,
        tasks=tuple(state.task for state in states),
        differences={looks: {camera: _difference(states, looks, camera) for camera in CAMERAS} for looks in plan.looks},
    )
    return report, states


def _picture(seen: Observation, camera: Camera) -> UInt8Array:
    picture: UInt8Array = getattr(seen, camera)
    return picture


def _difference(states: Sequence[RenderedState], looks: Looks, camera: Camera) -> PictureDifference:
    levels = [
        float(np.abs(_picture(state.playtable[looks], camera).astype(np.int16) - _picture(state.real, camera)).mean())
        for state in states
    ]
    return PictureDifference(mean=float(np.mean(levels)), states=tuple(levels))


def assert_levels(report: LooksReport, limit: float) -> None:
    """Raise GateError, with the numbers, unless both cameras differ by at most `limit` grey levels in every look."""
    for looks, cameras in report.differences.items():
        worst = max(cameras, key=lambda camera: cameras[camera].mean)
        if cameras[worst].mean > limit:
            raise GateError(
                f"{worst} camera in the looks {looks!r}",
                got=f"{cameras[worst].mean:.1f} grey levels from {report.real_renderer}",
                expected=f"at most {limit:g}",
                remedy="Look at the pictures that --output writes.",
            )


def save_sheet(states: Sequence[RenderedState], path: Path) -> None:
    """Write a PNG with a row for each of some states: per camera the real picture, and beside it each of PlayTable's.

    Raises BackendUnavailableError if Pillow is not installed.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        remedy = "Install it with: pip install pillow."
        raise BackendUnavailableError("pillow", got=str(error), expected="Pillow", remedy=remedy) from error

    def tile(picture: UInt8Array) -> Any:
        return Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.NEAREST)

    shown = [states[index] for index in evenly_spaced(len(states), SHEET_ROWS)]
    columns = len(CAMERAS) * (1 + len(shown[0].playtable))
    step = TILE + GAP
    sheet = Image.new("RGB", (columns * step - GAP, len(shown) * step - GAP), "white")
    for row, state in enumerate(shown):
        pictures = [_picture(seen, camera) for camera in CAMERAS for seen in (state.real, *state.playtable.values())]
        for column, picture in enumerate(pictures):
            sheet.paste(tile(picture), (column * step, row * step))
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
