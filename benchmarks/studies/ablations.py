"""Ablations of a policy: the same training with one thing changed, and the same rollouts of every result.

    python -m rfedge.benchmarks.studies.ablations --start CHECKPOINT --data DEMOS --output FOLDER --minutes 6

Each variant is trained from CHECKPOINT (of `rfedge pretrain`) for as long as the others with `rfedge train`, exported in
fp32 and measured with `rfedge bench success`. A second run goes on where the first one stopped. The rows are those of the
paper's figure 3 (a) and (b) and of its table 3 that fit a machine without a GPU, and two of our own: carried state and
longer chunks.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from rfedge.benchmarks.latency.commands import run_rfedge
from rfedge.benchmarks.success.report import SuccessReport
from rfedge.bundle.artifact import load_bundle
from rfedge.errors import ArtifactError, ConfigError
from rfedge.records.machine import Measurement, provenance
from rfedge.records.record import Record
from rfedge.runtimes.control.limits import MAX_STEPS

ABLATIONS_SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Variant:
    """One row: what it is called, what is changed, and the flags of `rfedge train` that change it."""

    name: str
    change: str
    flags: tuple[str, ...] = ()


VARIANTS: Final = (
    Variant("lstm", "none: LSTM head, resampler and cross-attention pre-trained, all demonstrations"),
    Variant("gpt", "GPT head over the window", ("--head", "gpt")),
    Variant("mlp", "MLP head, the present frame alone", ("--head", "mlp")),
    Variant("mlp-history", "MLP head, the text reads six frames", ("--head", "mlp", "--media-frames", "6")),
    Variant("no-vl", "resampler and cross-attention re-initialised", ("--no-vl-pretraining",)),
    Variant("data-10", "a tenth of the demonstrations", ("--data-share", "0.1")),
    Variant("carry", "LSTM head whose state is carried on, no window", ("--time-keeping", "carry")),
    Variant("chunk-8", "chunks of eight actions, played no further than the others'", ("--chunk-size", "8")),
)


class TrainedVariant(Record):
    name: str  # label of its rows in `success`
    change: str  # against the first one, in words
    flags: tuple[str, ...]  # of `rfedge train`, beside those that all share
    steps: int
    seconds: float
    held_out_loss: float | None  # of the demonstrations that none learnt from


class AblationsReport(Measurement):
    format: Literal["rfedge-ablations"] = "rfedge-ablations"
    schema_version: int = ABLATIONS_SCHEMA_VERSION
    training: tuple[str, ...]  # flags of `rfedge train` that all variants share
    variants: tuple[TrainedVariant, ...]
    success: SuccessReport  # of all variants, on the same chains and starts


@dataclass(frozen=True, slots=True)
class AblationPlan:
    start: Path  # checkpoint that every variant starts from
    data: Path
    output: Path  # gets a folder for each variant, and the rollouts
    training: tuple[str, ...]  # flags of `rfedge train` for all of them
    success: tuple[str, ...]  # flags of `rfedge bench success`
    variants: tuple[Variant, ...] = VARIANTS  # the first one is what the others are compared with


def measure_ablations(plan: AblationPlan) -> AblationsReport:
    """Train, export and run every variant."""
    trained = []
    bundles = [plan.output / variant.name / "bundle" for variant in plan.variants]
    for variant, bundle in zip(plan.variants, bundles, strict=True):
        run = plan.output / variant.name
        started_from = ("--config", str(plan.start), "--data", str(plan.data), "--output", str(run))
        result = _rfedge("train", *started_from, *plan.training, *variant.flags)
        trained.append(
            TrainedVariant(
                name=variant.name,
                change=variant.change,
                flags=variant.flags,
                steps=result["steps"],
                seconds=result["seconds"],
                held_out_loss=result["validation_loss"],
            )
        )
        checkpoint = run / "checkpoint"
        if not _is_of(bundle, checkpoint):  # it may have been trained on since
            _rfedge("export", str(checkpoint), "--data", str(plan.data), "--output", str(bundle), "--overwrite")
    labels = [flag for variant in plan.variants for flag in ("--label", variant.name)]
    success = _rfedge(
        *("bench", "success", *map(str, bundles), *labels, *plan.success, "--output", str(plan.output / "rollouts"))
    )
    return AblationsReport(
        **provenance(), training=plan.training, variants=tuple(trained), success=SuccessReport.model_validate(success)
    )


def _is_of(bundle: Path, checkpoint: Path) -> bool:
    from rfedge.model.checkpoint import checkpoint_sha256  # imports PyTorch, which reading a record does without

    return bundle.exists() and load_bundle(bundle).manifest.source["checkpoint_sha256"] == checkpoint_sha256(checkpoint)


def _rfedge(*arguments: str) -> dict[str, Any]:
    sys.stderr.write(f"$ {shlex.join(('rfedge', *arguments))}\n")
    try:
        return run_rfedge(arguments)
    except subprocess.CalledProcessError as error:
        raise ArtifactError(
            f"rfedge {' '.join(arguments[:2])}",
            got=f"exit status {error.returncode}",
            expected="0",
            remedy="It said why above; the next run goes on from here.",
        ) from None


def choose(names: str) -> tuple[Variant, ...]:
    """Return the variants of a list with commas between."""
    known = {variant.name: variant for variant in VARIANTS}
    for name in (chosen := names.split(",")):
        if name not in known:
            raise ConfigError(
                "variant", got=repr(name), expected=f"some of {', '.join(known)}", remedy="Leave --variants out."
            )
    return tuple(known[name] for name in chosen)


def main(arguments: Sequence[str] | None = None) -> int:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=Path, required=True, help="checkpoint of rfedge pretrain")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--variants", default=",".join(variant.name for variant in VARIANTS))
    parser.add_argument("--minutes", type=float, default=6.0, help="of training, for each variant")
    parser.add_argument("--stride", type=int, default=4, help="frame stride, chunk size and execute_steps")
    parser.add_argument("--num", type=int, default=80, help="chains")
    parser.add_argument("--single-tasks", type=int, default=4, help="starts of every task")
    parser.add_argument("--tasks", default="all")
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS, help="control steps a task")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--vision-tokens", action="store_true", help="keep the frozen tower's tokens on disk")
    parser.add_argument("--record", type=Path, help="file for the record")
    options = parser.parse_args(arguments)
    stride = str(options.stride)
    training = (
        *("--frame-stride", stride, "--chunk-size", stride, "--proprioception", "--mixed-precision", "bf16"),
        *("--batch-size", "16", "--validation-fraction", "0.05", "--minutes", str(options.minutes)),
        *(("--vision-tokens",) if options.vision_tokens else ()),
    )
    success = (
        *("--execute-steps", stride, "--num", str(options.num), "--single-tasks", str(options.single_tasks)),
        *("--tasks", options.tasks, "--max-steps", str(options.max_steps), "--workers", str(options.workers)),
    )
    try:
        plan = AblationPlan(
            options.start, options.data, options.output, training, success, variants=choose(options.variants)
        )
        report = measure_ablations(plan)
    except (ArtifactError, ConfigError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if options.record is not None:
        report.write(options.record)
    table = Table(title=f"{options.minutes:g} minutes of training each")
    for column in ("variant", "change", "steps", "held-out loss", "single tasks", "average length"):
        table.add_column(column, justify="left" if column in ("variant", "change") else "right")
    for variant, row in zip(report.variants, report.success.rows, strict=True):
        loss = "-" if variant.held_out_loss is None else f"{variant.held_out_loss:.4f}"
        tasks = "-" if row.single_tasks is None else f"{row.single_tasks.success.value:.0%}"
        chains = "-" if row.chains is None else f"{row.chains.average_length.value:.2f}"
        table.add_row(variant.name, variant.change, str(variant.steps), loss, tasks, chains)
    Console(stderr=True).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
