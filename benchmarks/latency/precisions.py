"""What each precision of one policy weighs, how far it moves the action, and how long a call takes.

    python -m rfedge.benchmarks.latency.precisions --checkpoint DIR --data DIR --folder WORK --output RESULT.json

Every form is exported once with the same calibration frames and proof episodes, its gates forced where it misses them, and
kept in WORK, so that a killed run goes on. The forms that this CPU can run are then timed in turn in one process, on frames
of the demonstrations; fp32 is there twice, and its ratio to itself is the floor below which a difference means nothing.
Engines are built for a GPU that need not be there, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from rfedge.benchmarks.latency.engine_build import EngineJob, build_in_process
from rfedge.benchmarks.latency.run import LatencyPlan, dataset_observations, run_latency
from rfedge.benchmarks.records.schema import LatencyReport
from rfedge.benchmarks.success.precision_records import EngineRow, PrecisionRow, PrecisionsReport
from rfedge.bundle.artifact import Bundle, load_bundle
from rfedge.data import CalvinDataset
from rfedge.errors import ArtifactError, BackendUnavailableError, ConfigError, did_you_mean
from rfedge.export.mixed.budget import Budget
from rfedge.export.options import ExportOptions
from rfedge.export.passes.graph_files import file_bytes
from rfedge.export.pipeline import export_checkpoint
from rfedge.export.precisions.runs_here import runs_here
from rfedge.io.atomic import atomic_file
from rfedge.jobs.progress import Count, StageProgress
from rfedge.model import checkpoint_sha256
from rfedge.records.machine import provenance
from rfedge.records.plan import check_least
from rfedge.runtimes.backends.base import RuntimeSettings

__all__ = [
    "FORMS",
    "Form",
    "PrecisionsPlan",
    "PreparedForms",
    "measure_precisions",
    "prepare_precisions",
]

_BUDGET_METRIC: Final = "action_max_error"
_NOTE: Final = "made_from.json"


class Form(NamedTuple):
    """One export.

    Attributes:
        name: of its folder and its row.
        keep_float: blocks that stay in fp32; None leaves it to the precision.
        half_of: for mixed the form whose largest action error, halved, is the budget.
        has_engine: whether an engine is built of it.
    """

    name: str
    precision: str
    keep_float: tuple[str, ...] | None = None
    half_of: str | None = None
    has_engine: bool = False


FORMS: Final[tuple[Form, ...]] = (
    Form("fp32", "fp32", has_engine=True),
    Form("fp16", "fp16", has_engine=True),
    Form("bf16", "bf16"),
    Form("int8", "int8", has_engine=True),
    Form("int8-every-product", "int8", keep_float=()),
    Form("int8-weight", "int8-weight"),
    Form("int4-weight", "int4-weight"),
    Form("int4-weight-resampler-fp32", "int4-weight", keep_float=("resampler",)),
    Form("mixed-half-of-int8", "mixed", half_of="int8"),
    Form("mixed-half-of-int8-every-product", "mixed", half_of="int8-every-product"),
)


@dataclass(frozen=True)
class PrecisionsPlan:
    """What to measure.

    Attributes:
        checkpoint: folder of a trained policy.
        data: demonstrations, for calibration, proof and the timed frames.
        folder: keeps the bundles.
        forms: names of `FORMS`; the first is fp32, and what a budget is half of comes before it.
        calibration_frames, parity_steps: as `rfedge export` has them.
        iterations: timed calls of each form.
        sm: compute capability of the engines, such as 86; None builds none.
    """

    checkpoint: Path
    data: Path
    folder: Path
    forms: tuple[str, ...] = tuple(form.name for form in FORMS)
    calibration_frames: int = 128
    parity_steps: int = 64
    warmup: int = 20
    iterations: int = 200
    settle_ms: float = 20.0
    sm: int | None = 86
    seed: int = 0
    settings: RuntimeSettings = field(default_factory=RuntimeSettings)

    def __post_init__(self) -> None:
        """Refuse forms that cannot be measured together.

        Raises:
            ConfigError: an unknown form, one without what it is compared with, or nothing to count.
        """
        least = {"calibration_frames": self.calibration_frames, "parity_steps": self.parity_steps}
        check_least(1, {**least, "iterations": self.iterations})
        names = [form.name for form in FORMS]
        for name in self.forms:
            if name not in names:
                raise ConfigError("form", got=repr(name), expected=did_you_mean(name, names), remedy="Choose these.")
        for needed, why in (("fp32", "what all are compared with"), *_needed(self.chosen)):
            if needed not in self.forms:
                raise ConfigError("forms", got=f"no {needed}", expected=why, remedy=f"Add --form {needed}.")

    @property
    def chosen(self) -> tuple[Form, ...]:
        """The forms, in the order of `FORMS`."""
        return tuple(form for form in FORMS if form.name in self.forms)


class PreparedForms(NamedTuple):
    """What is known before anything is timed."""

    checkpoint_sha256: str
    rows: tuple[PrecisionRow, ...]
    engines: tuple[EngineRow, ...]
    no_engines: str | None


def prepare_precisions(plan: PrecisionsPlan, *, progress: StageProgress = lambda *_: None) -> PreparedForms:
    """Export what is missing in the plan's folder, and build the engines.

    Raises:
        ConfigError, DatasetError, ArtifactError: as `export_checkpoint`; or the folder was made for another plan.
    """
    sha256 = checkpoint_sha256(plan.checkpoint)
    _claim_folder(plan, sha256)
    rows: dict[str, PrecisionRow] = {}
    for form in plan.chosen:
        budget = rows[form.half_of].metrics[_BUDGET_METRIC] / 2 if form.half_of else None
        bundle = _bundle(plan, form, budget, progress)
        parity = bundle.manifest.parity
        answer = runs_here(bundle.path("backbone"))
        rows[form.name] = PrecisionRow(
            name=form.name,
            precision=form.precision,
            keep_float=form.keep_float,
            budget=budget,
            bundle_bytes=bundle.size_bytes,
            backbone_bytes=file_bytes(bundle.path("backbone")),
            metrics=parity.metrics,
            passed=parity.passed,
            forced=parity.forced,
            proved_on=parity.inputs,
            not_timed=None if answer.ok else f"onnxruntime has no kernel for {answer.operator or answer.reason} here",
        )
    return PreparedForms(sha256, tuple(rows.values()), *_engines(plan, progress))


def measure_precisions(plan: PrecisionsPlan, prepared: PreparedForms, *, on_round: Count | None = None) -> PrecisionsReport:
    """Time what runs here, in turns and fp32 twice, on frames and the first instruction of the demonstrations.

    `on_round` is called with (rounds done, rounds in all).
    """
    instruction = CalvinDataset.open(plan.data).segments[0].instruction
    latency = run_latency(
        LatencyPlan(
            instruction=instruction,
            bundles=tuple(plan.folder / row.name for row in prepared.rows if row.not_timed is None),
            warmup=plan.warmup,
            iterations=plan.iterations,
            settle_ms=plan.settle_ms,
            seed=plan.seed,
            settings=plan.settings,
        ),
        observations=dataset_observations(plan.data),
        inputs="frames of the demonstrations",
        on_round=on_round,
    )
    return PrecisionsReport(
        **provenance(),
        policy=latency.variants[0].policy,
        checkpoint_sha256=prepared.checkpoint_sha256,
        calibration_frames=plan.calibration_frames,
        parity_steps=plan.parity_steps,
        instruction=instruction,
        warmup=latency.conditions.warmup,
        iterations=plan.iterations,
        settle_ms=plan.settle_ms,
        threads=plan.settings.threads,
        spinning=plan.settings.spinning,
        seed=plan.seed,
        rows=tuple(_with_times(row, latency, plan) for row in prepared.rows),
        noise_floor=latency.noise_floor,
        engines=prepared.engines,
        no_engines=prepared.no_engines,
    )


def _needed(forms: Sequence[Form]) -> list[tuple[str, str]]:
    return [(form.half_of, f"the form whose error is the budget of {form.name}") for form in forms if form.half_of]


def _claim_folder(plan: PrecisionsPlan, sha256: str) -> None:
    """Note in the folder what its bundles are made from; refuse one that was made from something else."""
    made_from = {
        "checkpoint_sha256": sha256,
        "data": str(plan.data.resolve()),
        "calibration_frames": plan.calibration_frames,
        "parity_steps": plan.parity_steps,
        "seed": plan.seed,
    }
    note = plan.folder / _NOTE
    if not note.exists():
        plan.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(note) as temporary:
            temporary.write_text(json.dumps(made_from, indent=1) + "\n")
    elif (noted := json.loads(note.read_text())) != made_from:
        differs = ", ".join(name for name, value in made_from.items() if noted.get(name) != value)
        raise ArtifactError(
            str(plan.folder), got=f"bundles of another {differs}", expected="its own", remedy="Use a new --folder."
        )


def _bundle(plan: PrecisionsPlan, form: Form, budget: float | None, progress: StageProgress) -> Bundle:
    output = plan.folder / form.name
    if output.exists():
        return load_bundle(output)
    options = ExportOptions(
        precision=form.precision,
        data=plan.data,
        keep_float=form.keep_float,
        budget=None if budget is None else Budget(_BUDGET_METRIC, budget),
        num_calibration_frames=plan.calibration_frames,
        num_parity_steps=plan.parity_steps,
        seed=plan.seed,
        force=True,
    )
    return export_checkpoint(
        plan.checkpoint, output, options, progress=lambda stage, done, total: progress(f"{form.name}: {stage}", done, total)
    )


def _with_times(row: PrecisionRow, latency: LatencyReport, plan: PrecisionsPlan) -> PrecisionRow:
    source = str(plan.folder / row.name)
    variant = next((item for item in latency.variants if item.role == "bundle" and item.source == source), None)
    if variant is None:
        return row
    ratios = {
        item.stage: item.speedup
        for item in latency.comparisons
        if item.variant == variant.name and item.baseline == latency.variants[0].name
    }
    return row.model_copy(
        update={
            "load_rss_bytes": variant.load_rss_bytes,
            "call_ms": variant.per_call_ms["total"],
            "backbone_ms": variant.per_call_ms["backbone"],
            "speedup": ratios.get("total"),
            "backbone_speedup": ratios.get("backbone"),
        }
    )


def _engines(plan: PrecisionsPlan, progress: StageProgress) -> tuple[tuple[EngineRow, ...], str | None]:
    if plan.sm is None:
        return (), "none were asked for"
    from rfedge.nvidia.tensorrt import load_tensorrt

    try:
        load_tensorrt("tensorrt-rtx")
    except BackendUnavailableError as error:
        return (), str(error)
    forms = [form for form in plan.chosen if form.has_engine]
    rows = []
    for done, form in enumerate(forms):
        progress("engines", done, len(forms))
        outcome = build_in_process(EngineJob(bundle=plan.folder / form.name, sm=plan.sm))
        failed = isinstance(outcome, str)
        rows.append(EngineRow(name=form.name, engine=None if failed else outcome, failed=outcome if failed else None))
    progress("engines", len(forms), len(forms))
    return tuple(rows), None


def main() -> int:
    from rfedge.cli.show.progress import round_progress, stage_progress

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("checkpoint", "data", "folder", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--form", action="append", choices=[form.name for form in FORMS], help="only these; all by default")
    for name in ("calibration_frames", "parity_steps", "iterations", "sm", "seed"):
        default = PrecisionsPlan.__dataclass_fields__[name].default
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=2)
    given = vars(parser.parse_args())
    output, threads, forms = given.pop("output"), given.pop("threads"), given.pop("form")
    plan = PrecisionsPlan(
        **given, forms=tuple(forms or (form.name for form in FORMS)), settings=RuntimeSettings(threads=threads)
    )
    with stage_progress() as progress:
        prepared = prepare_precisions(plan, progress=progress)
    with round_progress() as on_round:
        report = measure_precisions(plan, prepared, on_round=on_round)
    report.write(output)
    for row in report.rows:
        ratio = "-" if row.speedup is None else f"x{row.speedup.value:.2f} [{row.speedup.low:.2f}, {row.speedup.high:.2f}]"
        error = row.metrics[_BUDGET_METRIC]
        sys.stderr.write(f"{row.name:34s} {row.bundle_bytes / 1e6:7.1f} MB  {ratio}  action error {error:.4f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
