"""`rfedge demos convert`: demonstrations in HDF5 or LeRobot form -> the CALVIN format."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rfedge.data.conversion import ConversionResult

__all__ = ["convert"]

_LIBRARIES = ("rfedge", "numpy", "h5py", "pyarrow", "av", "pillow")


def convert(
    source: Annotated[Path, typer.Argument(help="HDF5 file or a folder of them, or the root of a LeRobot v3 dataset.")],
    source_format: Annotated[str, typer.Option("--from", help="hdf5 or lerobot.")],
    output: Annotated[Path, typer.Option(help="New dataset folder; it appears when everything is written.")],
    mapping: Annotated[
        list[str] | None, typer.Option("--map", help="FIELD=KEY or FIELD=KEY[START:STOP]; repeat it. See the guide.")
    ] = None,
    map_file: Annotated[Path | None, typer.Option(help="YAML or JSON file of such mappings, FIELD: KEY.")] = None,
    actions: Annotated[
        str, typer.Option(help="relative, absolute, or next-state (the pose of the next frame).")
    ] = "relative",
    position_scale_m: Annotated[float | None, typer.Option(help="Metres per unit of relative actions.")] = None,
    rotation_scale_rad: Annotated[float | None, typer.Option(help="Radians per unit of relative actions.")] = None,
    rotation: Annotated[
        str | None, typer.Option(help="Of the source's actions: euler or axis-angle; default from the layout, else euler.")
    ] = None,
    gripper_convention: Annotated[
        str | None, typer.Option(help="close-1-open1, open-1-close1, close0-open1 or open0-close1.")
    ] = None,
    source_fps: Annotated[float | None, typer.Option(help="Frequency of the source, where it does not say.")] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frequency to write: the source's keeps the frames, another one resamples.")
    ] = None,
    resize: Annotated[
        str, typer.Option(help="How images reach the policy's square: crop the middle, stretch, or pad with black.")
    ] = "crop",
    flip: Annotated[str | None, typer.Option(help="none, vertical or both; default from the layout.")] = None,
    tcp_offset_m: Annotated[str, typer.Option(help="X,Y,Z added to tcp positions, to reach CALVIN's frame.")] = "0,0,0",
    instruction: Annotated[str | None, typer.Option(help="For all episodes, instead of the source's own.")] = None,
    allow_missing: Annotated[list[str] | None, typer.Option(help="gripper (black images) or joints (neutral).")] = None,
    allow_mismatch: Annotated[
        list[str] | None,
        typer.Option(help="motion or gripper: convert although actions and measured state disagree about it."),
    ] = None,
    split: Annotated[str, typer.Option(help="training or validation.")] = "training",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at --output.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the whole source, map the first episode, write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
) -> None:
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.stopped import kept_when_stopped
    from rfedge.data.conversion import ConversionOptions, convert_dataset, parse_fields, read_field_file
    from rfedge.envs.language import PARAPHRASES
    from rfedge.envs.tasks import INSTRUCTIONS

    tasks = {sentence: task for task, sentences in PARAPHRASES.items() for sentence in sentences}
    options = ConversionOptions(
        fields={**(read_field_file(map_file) if map_file else {}), **parse_fields(mapping or ())},
        actions=actions,
        position_scale_m=position_scale_m,
        rotation_scale_rad=rotation_scale_rad,
        rotation=rotation,
        gripper=gripper_convention,
        source_fps=source_fps,
        fps=fps,
        resize=resize,
        flip=flip,
        tcp_offset_m=_offset(tcp_offset_m),
        instruction=instruction,
        allow_missing=tuple(allow_missing or ()),
        allow_mismatch=tuple(allow_mismatch or ()),
        split=split,
        tasks={**tasks, **{sentence: task for task, sentence in INSTRUCTIONS.items()}},
    )
    with kept_when_stopped(f"nothing was written to {output}"), stage_progress() as progress:
        result = convert_dataset(
            source,
            source_format,
            output,
            options,
            trial=dry_run,
            overwrite=overwrite,
            versions={"python": platform.python_version(), **_versions()},
            on_progress=lambda done, total: progress("episodes", done, total),
        )
    _print(result, to_stderr=as_json)
    if as_json:
        folder = None if result.folder is None else str(result.folder)
        print(json.dumps({**dataclasses.asdict(result), "folder": folder}))


def _offset(text: str) -> tuple[float, float, float]:
    from rfedge.errors import ConfigError

    try:
        x_m, y_m, z_m = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            "--tcp-offset-m", got=repr(text), expected="three numbers X,Y,Z", remedy="Write, say, 0.2,0,-0.5."
        ) from None
    return x_m, y_m, z_m


def _versions() -> dict[str, str]:
    # Only the libraries of one source format need to be there.
    installed = {name.lower() for found in metadata.distributions() if (name := found.metadata["Name"])}
    return {name: metadata.version(name) for name in _LIBRARIES if name in installed}


def _print(result: ConversionResult, *, to_stderr: bool) -> None:
    from rfedge.cli.show.tables import print_table

    rows: list[tuple[str, object]] = [
        ("layout", result.layout),
        ("fields", ", ".join(f"{name}={key}" for name, key in result.fields.items())),
        ("episodes in the source", result.num_episodes),
        ("frames", result.num_frames),
        ("language segments", result.num_segments),
        ("tasks", ", ".join(f"{task} {count}" for task, count in result.segments_per_task.items())),
        ("frequency", f"{result.source_hz:g} -> {result.frequency_hz:g} Hz"),
        ("steps cut to 0.02 m, 0.05 rad", f"{100.0 * result.clipped_share:.1f} %"),
        (
            "measured / commanded motion",
            ", ".join(f"{name} {factor:.2f}" for name, factor in result.motion_factors.items()) or "not compared",
        ),
        ("missing", ", ".join(result.missing) or "nothing"),
    ]
    title = "first episode only, nothing was written" if result.folder is None else str(result.folder)
    print_table(title, ("", "converted"), rows, to_stderr=to_stderr)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if result.clipped_share > 0.01:
        print(
            "note: steps that were cut no longer reach what the source asked for; --actions next-state follows the "
            "motion that was measured",
            file=sys.stderr,
        )
