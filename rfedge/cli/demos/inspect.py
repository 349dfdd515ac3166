"""`rfedge demos inspect`: what a dataset holds and what is damaged in it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfedge.cli.options import AsJson

if TYPE_CHECKING:
    from rfedge.data.inspection.report import InspectionReport

_SHOWN_FINDINGS = 20
_POSE = ("x", "y", "z", "euler x", "euler y", "euler z")
_FURNITURE = ("slider", "drawer", "button", "switch", "lightbulb", "led")


def inspect(
    folder: Annotated[Path, typer.Argument(help="Dataset in the CALVIN format: its root or one split folder.")],
    split: Annotated[str | None, typer.Option(help="training or validation; default training.")] = None,
    frames: Annotated[str, typer.Option(help="Number of frames to read and check, sampled by --seed, or `all`.")] = "1000",
    workers: Annotated[int, typer.Option(min=1, help="Processes that read; the report does not depend on it.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Decides which frames.")] = 0,
    as_json: AsJson = False,
) -> int:
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.tables import print_json, say
    from rfedge.data.inspection.report import inspect_dataset
    from rfedge.envs.tasks import TASKS

    with stage_progress() as progress:
        report = inspect_dataset(
            folder,
            split=split,
            num_frames=_num_frames(frames),
            seed=seed,
            workers=workers,
            task_names=TASKS,
            on_progress=partial(progress, "frames"),
        )
    print_json(report)
    if not as_json:
        _print_tables(report)
    damage = f"{len(report.findings)} damaged" if report.findings else "no damage found"
    checked = f"{report.num_frames_checked} of {report.num_frames} frames and all index files checked"
    say(f"{report.folder}: {damage}; {checked}")
    return 1 if report.findings else 0


def _num_frames(text: str) -> int | None:
    from rfedge.errors import ConfigError

    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError("--frames", got=repr(text), expected="`all` or a number from 1 on", remedy="Try 1000.")
    return int(text)


def _print_tables(report: InspectionReport) -> None:
    from rfedge.cli.show.tables import print_table

    size = f"{'about ' if report.size_is_estimate else ''}{report.size_bytes / 1e6:.1f} MB"
    contents = [
        ("frames", f"{report.num_frames}, {size}"),
        ("episodes", report.num_episodes),
        ("language segments", f"{report.num_segments} of {len(report.tasks)} tasks"),
        ("instructions", report.num_instructions),
        (
            "measured / commanded motion",
            ", ".join(f"{name} {factor:.2f}" for name, factor in report.motion_factors.items()) or "not compared",
        ),
        ("language folders", ", ".join(report.language_folders) or "none"),
        *((f"scene {row.scene}", f"{row.frames} frames, {row.first} to {row.last}") for row in report.scenes),
    ]
    print_table(report.folder, ("", "holds"), contents)
    columns = ("task", "segments", "frames", "shortest", "median", "longest")
    lengths = [(row.task, row.segments, row.frames, row.shortest, f"{row.median:g}", row.longest) for row in report.tasks]
    print_table("language segments, lengths in frames", columns, lengths)
    for name, spread in report.spreads.items():
        if name.startswith("scene_obs") and not any((*spread.minimum, *spread.maximum)):
            print(f"{name}: zero throughout, the data has no scene")
            continue
        numbers = zip(_elements(name, report), spread.mean, spread.deviation, spread.minimum, spread.maximum, strict=True)
        cells = [(element, *(f"{value:.4f}" for value in values)) for element, *values in numbers]
        print_table(f"{name} of the checked frames", ("", "mean", "deviation", "minimum", "maximum"), cells)
    if report.against_statistics:
        differences = [(name, _difference(name, value)) for name, value in report.against_statistics.items()]
        print_table("largest difference from statistics.yaml", ("", "difference"), differences)
    for note in report.notes:
        print(f"note: {note}")
    if report.findings:
        shown = report.findings[:_SHOWN_FINDINGS]
        print_table("damage", ("file", "found", "expected"), [(row.file, row.what, row.expected) for row in shown])
        if len(report.findings) > len(shown):
            print(f"and {len(report.findings) - len(shown)} more; --json lists all")


def _elements(name: str, report: InspectionReport) -> tuple[str, ...]:
    """Names of the elements of one spread; blocks have colours where it is over one scene, else only numbers."""
    from rfedge.contract import ActionSemantics
    from rfedge.data.scene.scenes import BLOCK_ORDER
    from rfedge.messages import STATE_NAMES

    key, _, scene = name.partition(" of ")
    if key != "scene_obs":
        return STATE_NAMES if key == "robot_obs" else ActionSemantics().order
    if not scene and len(report.scenes) == 1:
        scene = report.scenes[0].scene
    blocks = BLOCK_ORDER.get(scene, ("block 1", "block 2", "block 3"))
    return (*_FURNITURE, *(f"{block} {part}" for block in blocks for part in _POSE))


def _difference(name: str, value: float) -> str:
    if name.endswith("mean"):
        return f"{value:.3f} deviations"
    return f"factor {value:.3f}" if name.endswith("deviation") else f"{value:.3f}"
