"""`rfedge build`: bundle -> TensorRT engines, on the device or ahead of time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rfedge.cli.options import AsJson, bundle_folder, plan_of, with_options
from rfedge.export.tensorrt.options import BuildOptions

if TYPE_CHECKING:
    from rfedge.export.tensorrt.audit import StageAudit
    from rfedge.export.tensorrt.pipeline import PlannedEngine, StageResult


@with_options(BuildOptions)
def build(
    bundle: Annotated[Path, typer.Argument(callback=bundle_folder, help="Bundle folder written by `rfedge export`.")],
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help="Exit 1 when layers exceed this, repeatable: 'fp32>5%', 'fp32>20', 'unfused>0' (attention)."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 1 when an engine computes in float what the bundle holds in int8.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would be built, write nothing.")
    ] = False,
    json: AsJson = False,
    **given: Any,
) -> None:
    from importlib.util import find_spec

    from rfedge.cli.show.progress import kept_when_stopped, stage_progress
    from rfedge.cli.show.tables import say, warn
    from rfedge.errors import BackendUnavailableError

    if find_spec("onnx_ir") is None:  # not by the export extra, which would bring PyTorch to a robot
        remedy = "Install it: pip install onnx-ir."
        raise BackendUnavailableError("rfedge build", got="no onnx_ir", expected="onnx-ir", remedy=remedy)
    from rfedge.export.tensorrt.audit import exceeded, parse_limit
    from rfedge.export.tensorrt.pipeline import build_bundle, open_target, plan_build

    limits = [parse_limit(text) for text in fail_on or ()]
    is_ahead = bool(given["aot"])
    fixed = {} if given["target"] or not is_ahead else {"target": "tensorrt-rtx"}
    options = plan_of(BuildOptions, given, **fixed)
    if dry_run:
        from rfedge.bundle.artifact import load_bundle

        _print_plan(plan_build(load_bundle(bundle), open_target(options), options))
        return
    with kept_when_stopped(f"engines that were finished are in {bundle}"), stage_progress() as progress:
        results = build_bundle(bundle, options, progress=progress)
    _print_results(results)
    if is_ahead:
        say("not for Jetson: TensorRT for RTX does not run there; on the board itself run `rfedge build BUNDLE`")
    beyond = [
        f"{_label(result)}: {text}" for result in results for limit in limits if (text := exceeded(result.audit, limit))
    ]
    warn(*(f"failed: {text}" for text in beyond))
    if beyond or (strict and any(result.audit.missed or result.audit.weights_grew for result in results)):
        raise typer.Exit(1)


def _print_plan(planned: list[PlannedEngine]) -> None:
    from rfedge.cli.show.tables import print_json, print_table

    rows = [(item.stage, item.folder.name, item.reason or "up to date") for item in planned]
    print_table("engines; nothing was written", ("stage", "target", "to build, because"), rows)
    print_json([{"stage": stage, "target": name, "reason": reason} for stage, name, reason in rows])


def _print_results(results: list[StageResult]) -> None:
    from rfedge.cli.show.tables import print_json, print_table, warn

    rows = [
        (
            result.planned.stage,
            result.planned.folder.name,
            f"{result.record.size_bytes / 1e6:.1f}",
            f"{result.record.build_seconds:.1f}" if result.built else "up to date",
            ", ".join(f"{count} {name}" for name, count in result.record.precisions.items()),
        )
        for result in results
    ]
    print_table("engines", ("stage", "target", "MB", "build s", "MatMuls"), rows)
    for result in results:
        audit, label = result.audit, _label(result)
        _print_audit(label, audit)
        lines = [f"note: {label}: {note}" for note in result.notes]
        lines += [f"warning: {label}: {item.module or item.node} is not int8: {item.reason}" for item in audit.missed]
        if audit.weights_grew:
            lines.append(
                f"warning: {label}: the engine holds {audit.engine_weights_bytes / 1e6:.1f} MB of weights, "
                f"the graph {audit.graph_weights_bytes / 1e6:.1f} MB"
            )
        warn(*lines)
    print_json([_summary(result) for result in results])


def _label(result: StageResult) -> str:
    return f"{result.planned.stage} sm{result.planned.key.target.sm}"


def _print_audit(label: str, audit: StageAudit) -> None:
    """Layers per block and precision, and every layer in fp32 with its reason; blocks that are alike are one row."""
    from rfedge.cli.show.tables import print_table
    from rfedge.export.tensorrt.audit import block_rows, fp32_rows

    if not audit.layers:
        return
    kinds = [name for name in ("int8", "fp16", "bf16", "fp32", "none") if name in audit.layer_precisions]
    rows = [
        (
            row.blocks if row.num_blocks == 1 else f"{row.blocks} (x{row.num_blocks})",
            *(row.layers.get(kind, "") for kind in kinds),
            f"{row.num_fused} of {row.num_attention} fused" if row.num_attention else "",
        )
        for row in block_rows(audit)
    ]
    fused = sum(item.fused for item in audit.attention)
    total = ("all", *(audit.layer_precisions[kind] for kind in kinds), f"{fused} of {len(audit.attention)} fused")
    columns = ("layers of each block", *("moves" if kind == "none" else kind for kind in kinds), "attention")
    print_table(f"{label} ({audit.source})", columns, [*rows, total])
    if wide := fp32_rows(audit):
        print_table(f"{label}: layers in fp32", ("why", "blocks", "layers"), wide)


def _summary(result: StageResult) -> dict[str, object]:
    planned, audit = result.planned, result.audit
    copied = {"size_bytes", "build_seconds", "weights_bytes", "activations_bytes", "precisions", "text_lengths"}
    return {
        "stage": planned.stage,
        "target": planned.folder.name,
        "plan": str(planned.folder / result.record.plan),
        "built": result.built,
        "reason": planned.reason,
        **result.record.model_dump(mode="json", include=copied),
        "floats": "as in the graph" if planned.islands is None else "fp16",
        "islands": planned.islands or {},
        "layers": audit.layer_precisions,
        "attention": {"all": len(audit.attention), "fused": sum(item.fused for item in audit.attention)},
        "missed": [matmul.model_dump(mode="json") for matmul in audit.missed],
        "weights_grew": audit.weights_grew,
        "audit": str(planned.folder / "audit.json"),
        "notes": list(result.notes),
    }
