"""Original files -> a checkpoint, tensor by tensor, so that neither the files nor the model need fit into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from rfedge.bundle.artifact import hash_file
from rfedge.errors import ArtifactError
from rfedge.io.disk import check_room
from rfedge.jobs.progress import StageProgress
from rfedge.model.checkpoint import write_checkpoint
from rfedge.model.original.import_plan import ImportPlan, part_of

# Mapped pages count as memory until the mapping goes, so it goes after this much was read.
_MAPPED_BYTES: Final = 1_000_000_000
_MEGABYTE: Final = 1_000_000


def check_output(plan: ImportPlan, output: Path, *, overwrite: bool) -> None:
    """Refuse at once an existing output, or a disk with too little room."""
    if output.exists() and not overwrite:
        raise ArtifactError(
            str(output), got="an existing path", expected="a free name", remedy="Pass --overwrite or another --output."
        )
    check_room(output, plan.size_bytes, what="the checkpoint")


def write_import(
    plan: ImportPlan, output: Path, *, overwrite: bool = False, progress: StageProgress = lambda *_: None
) -> dict[str, Any]:
    """Write the checkpoint atomically and return what is written about its origin.

    `progress` is called with (stage, megabytes done, megabytes in all).
    """
    plan.check()
    check_output(plan, output, overwrite=overwrite)
    origin = _origin(plan, progress)
    read, total, written, mapped = plan.reader(), plan.size_bytes, 0, 0

    def read_and_release(name: str) -> torch.Tensor:
        nonlocal mapped
        if mapped > _MAPPED_BYTES:
            plan.weights.release()
            mapped = 0
        tensor = read(name)
        mapped += tensor.numel() * 4  # at most: files hold float32 or less
        return tensor

    def on_bytes(count: int) -> None:
        nonlocal written
        written += count
        progress("write (MB)", written // _MEGABYTE, total // _MEGABYTE)

    try:
        write_checkpoint(
            output,
            plan.config,
            plan.tokenizer,
            {"import": origin},
            plan.specs,
            read_and_release,
            overwrite=overwrite,
            on_bytes=on_bytes,
        )
    finally:
        plan.weights.release()
    return origin


def import_document(plan: ImportPlan) -> dict[str, Any]:
    """Return the plan as JSON values, with every name that is missing, left over or of another shape."""
    return {
        "policy": plan.config.model_dump(mode="json"),
        "dtype": plan.options.dtype,
        "size_bytes": plan.size_bytes,
        "num_tensors": len(plan.weights.shapes),
        "taken": plan.weights.taken,
        "missing": plan.missing,
        "mismatched": [mismatch._asdict() for mismatch in plan.weights.mismatched],
        "left_over": plan.weights.left_over,
        "drawn": plan.initialised,
        "filled": list(plan.filled),
        "assumed": plan.assumed,
        "warnings": plan.warnings,
        "epoch": plan.epoch,
    }


def _origin(plan: ImportPlan, progress: StageProgress) -> dict[str, Any]:
    """Return where the checkpoint came from: its files with their sums, and what no file said."""
    # Both the weights and the settings of a language model may be asked for twice.
    files = list(dict.fromkeys(plan.files))
    total, done = sum(source.path.stat().st_size for source in files), 0

    def count(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        progress("check sums (MB)", done // _MEGABYTE, total // _MEGABYTE)

    sources = []
    for source in files:
        size_bytes, sha256 = source.path.stat().st_size, hash_file(source.path, count)
        entry = {"role": source.role, "file": source.path.name, "size_bytes": size_bytes, "sha256": sha256}
        if source.repository is not None:
            entry |= {"repository": source.repository, "revision": source.revision}
        sources.append(entry)
    return {
        "sources": sources,
        "epoch": plan.epoch,
        "dtype": plan.options.dtype,
        "seed": plan.options.seed,
        "drawn": sorted({part_of(name) for name in plan.initialised}),
        "assumed": plan.assumed,
        "warnings": plan.warnings,
        "left_over": len(plan.weights.left_over),
    }
