"""`rfedge inspect`: what a policy costs stage by stage, and what each known device would make of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfedge.cli.options import AsJson, bundle_folder

if TYPE_CHECKING:
    from rfedge.runtimes.roofline.devices import Device
    from rfedge.runtimes.roofline.graph_work import EngineShares
    from rfedge.runtimes.roofline.report import Inspection


def inspect(
    bundle: Annotated[
        Path | None,
        typer.Argument(callback=bundle_folder, help="Bundle folder or shipped policy; without one, give --config."),
    ] = None,
    config: Annotated[str | None, typer.Option(help="Preset to count without any file, such as M-3B.")] = None,
    precision: Annotated[
        str, typer.Option(help="With --config: fp32, fp16, bf16, int8, int8-weight or int4-weight.")
    ] = "fp32",
    device: Annotated[
        list[str] | None, typer.Option(help="Device to predict for, repeatable; all known ones and this CPU without.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of this CPU's calibration; 0 is every usable core.")] = 0,
    blocks: Annotated[bool, typer.Option("--blocks", help="List every block, not only the stages.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the roofline to this picture file.")] = None,
    as_json: AsJson = False,
) -> None:
    from rfedge.bundle.artifact import load_bundle
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.tables import print_json
    from rfedge.config import preset
    from rfedge.errors import ConfigError
    from rfedge.runtimes.roofline.report import inspect_bundle, inspect_config

    if (bundle is None) == (config is None):
        raise ConfigError(
            "inspect",
            got="neither BUNDLE nor --config" if bundle is None else "both BUNDLE and --config",
            expected="one of them",
            remedy="Name a bundle folder, or a preset with --config.",
        )
    devices = tuple(device or ())
    with stage_progress() as progress:
        if bundle is not None:
            inspection = inspect_bundle(load_bundle(bundle), devices=devices, threads=threads or None, progress=progress)
        else:
            assert config is not None
            chosen = preset(config)
            inspection = inspect_config(chosen, precision, devices=devices, threads=threads or None, progress=progress)
    _print(inspection, with_blocks=blocks)
    if plot is not None:
        from rfedge.runtimes.roofline.report import plot_roofline

        plot_roofline(inspection, plot)
    print_json(inspection.document())


def _print(inspection: Inspection, *, with_blocks: bool) -> None:
    from rfedge.cli.show.tables import print_table, say
    from rfedge.runtimes.roofline.work import STAGES

    work = inspection.work
    sums = [(str(stage), work.stage(stage)) for stage in STAGES]
    if with_blocks:
        sums = [(block, found) for (_, block), found in work.blocks().items()]
    rows = [
        (
            name,
            f"{item.parameters / 1e6:.2f}",
            f"{item.macs / 1e9:.3f}",
            f"{item.weight_bytes / 1e6:.1f}",
            f"{item.activation_bytes / 1e6:.1f}",
            f"{item.intensity:.1f}",
            item.label,
        )
        for name, item in (*sums, ("in all", work.total()))
    ]
    columns = (
        "per policy call",
        "parameters (M)",
        "GMAC",
        "weights (MB)",
        "activations (MB)",
        "operations / byte",
        "precision",
    )
    title = f"{inspection.subject}: counted from its {inspection.counted_from}, head over {work.head_steps} features"
    print_table(title, columns, rows)
    if inspection.graphs:
        graphs = [
            (item.graph, item.file, f"{item.size_bytes / 1e6:.1f}", f"{item.macs / 1e9:.3f}", item.precision)
            for item in inspection.graphs
        ]
        print_table("graphs, each loaded as one", ("graph", "file", "MB", "GMAC", "precision"), graphs)
    predictions = [
        (
            f"{item.device.name} {item.device.power_mode}".strip(),
            f"{item.low_ms:.1f} to {item.high_ms:.1f}",
            f"{item.longest}, {item.stages[item.longest].bound}",
            "yes" if item.fits else f"no: {item.needed_bytes / 1e9:.1f} of {item.free_bytes / 1e9:.1f} GB",
            item.device.origin,
        )
        for item in inspection.predictions
    ]
    print_table(
        "PREDICTED, not measured",
        ("device", "ms per policy call", "longest stage, limited by", "fits", "device figures"),
        predictions,
    )
    say(*_notes(inspection))


def _notes(inspection: Inspection) -> list[str]:
    notes = []
    for item in inspection.predictions:
        if inspection.measured is not None and item.device.name == "this-cpu":
            ms = inspection.measured.p50_ms
            notes.append(
                f"this-cpu: MEASURED {ms:.1f} ms (median of {inspection.measured.num_calls} calls); the middle of the "
                f"prediction, {item.middle_ms:.1f} ms, is {item.middle_ms / ms - 1:+.0%} off"
            )
    used = {("CPU" if item.device.name == "this-cpu" else "GPU"): item.device for item in inspection.predictions}
    notes += [
        f"a {kind} is taken to reach {device.worst:.0%} to {device.best:.0%} of its roofline, and an operator to take "
        f"{device.least_launch_us:.2g} to {device.most_launch_us:.2g} us at least"
        for kind, device in used.items()
    ]
    if inspection.engine_work is not None:
        notes.append("GPUs are predicted with the floats that the manifest names for TensorRT, attention in one kernel")
    notes += [
        f"{', '.join(engine.graphs)} in {engine.folder}, audited: {_layers(engine)}, {engine.num_launches} launches"
        for engine in inspection.engines
    ]
    notes += [_own_figures(item.device) for item in inspection.predictions if item.device.name.startswith("this-")]
    notes += [
        f"{item.device.name} has no {wanted} arithmetic and would use {used}"
        for item in inspection.predictions
        for wanted, used in item.substitutes.items()
    ]
    notes += [f"not counted: {name}" for name in inspection.work.uncounted]
    notes += [f"precision of {text}" for text in inspection.disagreements]
    if inspection.forced_past:
        notes.append(f"warning: exported with --force; its proof missed {'; '.join(inspection.forced_past)}")
    return notes


def _layers(engine: EngineShares) -> str:
    layers = ", ".join(f"{count} {'moves' if name == 'none' else name}" for name, count in engine.layers.items())
    return f"{layers} layers, {engine.num_fused} of {engine.num_attention} attentions fused"


def _own_figures(device: Device) -> str:
    peaks = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in device.peaks.items())
    return f"{device.name}: {device.source}; {peaks} G operations/s, {device.bandwidth / 1e9:.1f} GB/s ({device.origin})"
