"""`rfedge demos convert`: demonstrations in HDF5 or LeRobot form -> the CALVIN format."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from rfedge.cli.options import AsJson, plan_of, with_options
from rfedge.data.conversion import ConversionOptions, ConversionResult, convert_dataset, parse_fields, read_field_file

_LIBRARIES = ("rfedge", "numpy", "h5py", "pyarrow", "av", "pillow")


@with_options(ConversionOptions)
def convert(
    source: Annotated[Path, typer.Argument(help="HDF5 file or a folder of them, or the root of a LeRobot v3 dataset.")],
    source_format: Annotated[str, typer.Option("--from", help="hdf5 or lerobot.")],
    output: Annotated[Path, typer.Option(help="New dataset folder; it appears when everything is written.")],
    mapping: Annotated[
        list[str] | None, typer.Option("--map", help="FIELD=KEY or FIELD=KEY[START:STOP]; repeat it. See the guide.")
    ] = None,
    map_file: Annotated[Path | None, typer.Option(help="YAML or JSON file of such mappings, FIELD: KEY.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at --output.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the whole source, map the first episode, write nothing.")
    ] = False,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    from rfedge.cli.show.progress import kept_when_stopped, stage_progress
    from rfedge.cli.show.tables import print_json
    from rfedge.envs.language import PARAPHRASES
    from rfedge.envs.tasks import INSTRUCTIONS
    from rfedge.records.machine import library_versions

    tasks = {sentence: task for task, sentences in PARAPHRASES.items() for sentence in sentences}
    options = plan_of(
        ConversionOptions,
        given,
        fields={**(read_field_file(map_file) if map_file else {}), **parse_fields(mapping or ())},
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
            versions=library_versions(_LIBRARIES),
            on_progress=partial(progress, "episodes"),
        )
    _print(result)
    print_json(result)


def _print(result: ConversionResult) -> None:
    from rfedge.cli.show.tables import print_table, warn

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
    print_table(title, ("", "converted"), rows)
    notes = list(result.notes)
    if result.clipped_share > 0.01:
        notes.append(
            "steps that were cut no longer reach what the source asked for; --actions next-state follows the motion that "
            "was measured"
        )
    warn(*(f"note: {note}" for note in notes))
