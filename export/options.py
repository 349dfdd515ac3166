"""Options of `rfedge export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

from rfedge.export.int8.options import Int8Options
from rfedge.export.mixed.plan import Budget, parse_budget
from rfedge.records.plan import Option, Uses

STAGES: Final = ("one", "two")
HEAD_PRECISIONS: Final = ("fp32", "int8")


def _parse_keep_float(text: str) -> tuple[str, ...] | None:
    named = tuple(name.strip() for name in text.split(",") if name.strip())
    return None if named == ("default",) else () if named == ("none",) else named


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Form of the bundle, and its proof."""

    precision: Annotated[
        str,
        Option(
            "fp32, fp16, bf16, int8, int8-weight, int4-weight or mixed; with --stages two also one for each, such as "
            "vision=fp16,decoder=int8.",
            panel="Graphs",
        ),
    ] = "fp32"
    stages: Annotated[
        str,
        Option(
            "Graphs of the backbone: one, or two (cameras to latents; latents and instruction to the feature), which "
            "can be built and loaded one at a time.",
            choices=STAGES,
        ),
    ] = "one"
    head_precision: Annotated[
        str,
        Option(
            "int8 weights, which are what a head costs to read: a head of its own for CPUs and, unless the precision is "
            "fp32, in engines.",
            choices=HEAD_PRECISIONS,
        ),
    ] = "fp32"
    keep_float: Annotated[
        tuple[str, ...] | None,
        Option(
            "Blocks that stay fp32: beginnings of their names, separated by commas; "
            '"default" rounds the weights alone where queries attend to the cameras: int8 with fp32 activations (on CPUs in '
            "int8 with a scale a row), where the proof allows it, else fp32; in int4-weight 8 bits; "
            '"none" quantizes everything.',
            parse=_parse_keep_float,
            text="default",
        ),
    ] = None
    merge_tokens: Annotated[
        int,
        Option(
            "Patch tokens that each layer of the vision transformer merges into those most alike: less work, other "
            "actions (docs/precisions.md).",
            min=0,
        ),
    ] = 0
    instructions: Annotated[
        str | None,
        Option(
            "The only sentences that the bundle shall know, instead of tokenizer and token table: a text file with one "
            'a line, a .json list, or "data" for those of the demonstrations. Decoder blocks that '
            "read words alone are run on them now."
        ),
    ] = None
    data: Annotated[
        Path | None,
        Option(
            "Demonstrations: calibration and proof; int8 and mixed need them. For a shipped policy scripted experts "
            "collect some, once, if none are named.",
            panel="Calibration and proof",
        ),
    ] = None
    data_description: str | None = None  # one line for the manifest's `source` that says where `data` comes from
    num_calibration_frames: Annotated[
        int, Option("Frames that set int8 ranges and round weights.", flag="--calibration-frames", min=1)
    ] = 128
    int8: Annotated[Int8Options, Uses("ranges", "smooth_quant")] = field(default_factory=Int8Options)
    num_parity_steps: Annotated[
        int, Option("Steps of the proof rollout with carried state.", flag="--parity-steps", min=1)
    ] = 64
    seed: Annotated[int, Option("Seed of calibration and proof frames.")] = 0
    force: Annotated[bool, Option("Write the bundle although it misses a threshold; its manifest says so.")] = False
    budget: Annotated[
        Budget | None,
        Option(
            "How far mixed may move the action from fp32, such as action_error=0.01 (the largest; 1.0 is 20 mm or 0.05 "
            "rad), action_p99_error or action_mean_error. What was measured is kept beside OUTPUT in OUTPUT.search.",
            panel="Mixed precision",
            parse=parse_budget,
        ),
    ] = None
    chart: Annotated[Path | None, Option("Picture file: what int8 costs and saves in each block.")] = None
    overwrite: Annotated[bool, Option("Replace an existing bundle.", panel="Output")] = False
