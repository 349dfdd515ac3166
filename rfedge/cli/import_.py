"""`rfedge import`: original RoboFlamingo and OpenFlamingo files -> checkpoint."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rfedge.model.original.import_plan import ImportPlan

__all__ = ["import_weights"]

_LISTED = 10
_SOURCE = "A file, a folder, a Hugging Face id (organisation/name, then /file and @revision) or its folder in the cache."


class DType(str, Enum):
    """Dtype on disk; a policy computes in fp32 whatever it is."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Fusion(str, Enum):
    """How the cameras come together."""

    POST = "post"
    PRE = "pre"
    TWO_WAY = "two_way"


class Pooling(str, Enum):
    """Over the tokens."""

    MAX = "max"
    AVERAGE = "average"


class FeatureState(str, Enum):
    """State of the decoder that the head reads."""

    LAST_BLOCK_INPUT = "last_block_input"
    LAST_BLOCK = "last_block"
    FINAL_NORM = "final_norm"


def import_weights(
    output: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    roboflamingo: Annotated[
        str | None, typer.Option(help=f"RoboFlamingo's .pth; without one the head is initialised. {_SOURCE}")
    ] = None,
    openflamingo: Annotated[
        str | None, typer.Option(help="OpenFlamingo's checkpoint.pt; not needed where the .pth holds the same parts.")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="CLIP ViT-L/14 of OpenAI, in the names of open_clip, transformers or timm.")
    ] = None,
    lm: Annotated[
        str | None, typer.Option(help="Folder of the language model; not needed where the .pth holds its blocks.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder with tokenizer.json; that of --lm without.")] = None,
    config: Annotated[str | None, typer.Option(help="Preset whose sizes the files must have, such as M-3B.")] = None,
    dtype: Annotated[DType, typer.Option(help="Dtype of the weights on disk.")] = DType.FP32,
    fusion: Annotated[Fusion | None, typer.Option(help="How the cameras come together; released: post.")] = None,
    pooling: Annotated[Pooling | None, typer.Option(help="Over the tokens; released: max.")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Frames that the head remembers; released: 12.")] = None,
    feature: Annotated[
        FeatureState | None,
        typer.Option(help="State that the head reads; released: last_block_input for MPT-1B, final_norm for others."),
    ] = None,
    chunk_size: Annotated[
        int | None,
        typer.Option(min=1, help="Actions per inference, of a head that is initialised; a file's head shows its own."),
    ] = None,
    text_length: Annotated[int | None, typer.Option(min=4, help="Tokens of the padded prompt; released: 32.")] = None,
    vision_heads: Annotated[int | None, typer.Option(min=1, help="Attention heads of CLIP; heads of 64 without.")] = None,
    keep_output_projection: Annotated[
        bool, typer.Option("--keep-output-projection", help="Keep what turns states into words, for co-training.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Initialises what no file holds.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every name and shape and write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    import json
    import sys

    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.stopped import kept_when_stopped
    from rfedge.model.original.import_plan import ImportOptions, plan_import
    from rfedge.model.original.import_sizes import Settings
    from rfedge.model.original.importing import check_output, import_document, write_import

    settings = Settings(
        fusion.value if fusion else None,
        pooling.value if pooling else None,
        window,
        feature.value if feature else None,
        chunk_size,
        text_length,
        keep_output_projection,
    )
    options = ImportOptions(
        clip=clip,
        language_model=lm,
        openflamingo=openflamingo,
        roboflamingo=roboflamingo,
        tokenizer=tokenizer,
        config=config,
        settings=settings,
        vision_heads=vision_heads,
        dtype=dtype.value,
        seed=seed,
    )
    plan = plan_import(options)
    document: dict[str, Any] = {"format": "rfedge-import", "output": str(output), "written": False, **import_document(plan)}
    if plan.weights.mismatched or plan.missing:
        if as_json:
            print(json.dumps(document))
        plan.check()
    if plan.warnings:
        print(f"warning: {'; '.join(plan.warnings)}", file=sys.stderr)
    check_output(plan, output, overwrite=overwrite)
    if not dry_run:
        with kept_when_stopped(f"nothing was written to {output}"), stage_progress() as progress:
            document["origin"] = write_import(plan, output, overwrite=overwrite, progress=progress)
        document["written"] = True
    _print(plan, output, dry_run=dry_run, to_stderr=as_json)
    if as_json:
        print(json.dumps(document))


def _print(plan: ImportPlan, output: Path, *, dry_run: bool, to_stderr: bool) -> None:
    import sys

    from rfedge.cli.show.tables import print_table

    out = sys.stderr if to_stderr else sys.stdout
    rows = [(name, count) for name, count in plan.weights.taken.items()]
    print_table(f"{plan.config.name}: tensors taken", ("file", "tensors"), rows, to_stderr=to_stderr)
    for sentence in plan.assumed:
        print(f"assumed: {sentence}", file=out)
    left_over = plan.weights.left_over
    for name in left_over[:_LISTED]:
        print(f"left over, nobody knows it: {name}", file=out)
    if len(left_over) > _LISTED:
        print(f"left over: {len(left_over) - _LISTED} more, see --json", file=out)
    size = f"{len(plan.weights.shapes)} tensors, {plan.size_bytes / 1e9:.2f} GB in {plan.options.dtype}"
    print(f"{output}: {size}; {'nothing was written' if dry_run else 'written'}", file=out)
