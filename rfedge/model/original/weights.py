"""Read the original files into a policy, in the original's order: language model, CLIP, OpenFlamingo, RoboFlamingo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rfedge.errors import ArtifactError
from rfedge.model.original.names import OUTPUT_PROJECTION
from rfedge.model.original.plan import PlannedFile, Role, plan_weights
from rfedge.model.original.tensor_files import open_tensor_file
from rfedge.model.policy import RoboFlamingo


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """What a load found.

    Attributes:
        missing: names of ours that no file holds; they keep their random values.
        left_over: `file: key` that nobody knows.
        assumed: sentences on values that no file holds and that were derived.
    """

    taken: dict[str, int]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    assumed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OriginalWeights:
    """The files of one model, in the order in which the original reads them; absent ones are left out.

    `others` are searched for the gripper camera's own resampler, which the original makes but never saves.
    """

    language_model: Path
    vision: Path
    openflamingo: Path | None = None
    roboflamingo: Path | None = None
    others: tuple[Path, ...] = ()


def load_original(
    policy: RoboFlamingo, files: OriginalWeights, *, without: Sequence[str] = ()
) -> tuple[WeightsReport, torch.Tensor]:
    """Fill `policy` in place.

    Args:
        policy: built for these files; its vocabulary is the tokenizer's, so the language model's rows are cut to it.
        without: prefixes of our names that are not expected, such as "head." without a RoboFlamingo file.

    Returns:
        the report, and the output projection (vocabulary, width) of the language model: its own or the embedding.

    Raises:
        ArtifactError: a file cannot be read, or a tensor has another shape than the policy's.
    """
    parts = sorted(files.language_model.glob("*.safetensors")) or sorted(files.language_model.glob("pytorch_model*.bin"))
    if not parts:
        raise ArtifactError(
            f"language model {files.language_model}",
            got="no weights",
            expected="*.safetensors or pytorch_model*.bin",
            remedy="Copy the folder again.",
        )
    chain: list[tuple[Role, Path | None]] = [
        *(("language model", part) for part in parts),
        ("clip", files.vision),
        ("openflamingo", files.openflamingo),
        ("roboflamingo", files.roboflamingo),
        *(("other", path) for path in files.others),
    ]
    shapes = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    shapes.setdefault(OUTPUT_PROJECTION, shapes["embedding.weight"])
    planned = [PlannedFile(role, open_tensor_file(path)) for role, path in chain if path is not None]
    plan = plan_weights(planned, shapes, policy.config.decoder.kind)
    for mismatch in plan.mismatched:
        raise ArtifactError(
            f"weights {mismatch.file}: {mismatch.name}",
            got=mismatch.got,
            expected=mismatch.expected,
            remedy="The file is of another model.",
        )
    assumed = [
        f"{name}: {rows} new rows are zero unless a later file holds them"
        for name in ("embedding.weight", OUTPUT_PROJECTION)
        if (rows := plan.new_rows(name)) > 0
    ]
    if policy.config.resampler.per_camera and plan.copy_missing_resampler():
        # The original copies its resampler while it is still random, then neither trains nor saves the copy.
        assumed.append("the gripper camera's resampler is in no file: it is a copy of the static camera's")
    values = {name: plan.read(name) for name in plan.pieces}
    projection = values.get(OUTPUT_PROJECTION, values.get("embedding.weight", policy.embedding.weight.detach()))
    own = policy.state_dict().keys()
    policy.load_state_dict({name: tensor for name, tensor in values.items() if name in own}, strict=False)
    report = WeightsReport(
        plan.taken,
        tuple(name for name in plan.missing if name in own and not name.startswith(tuple(without))),
        tuple(plan.left_over),
        tuple(assumed),
    )
    return report, projection.to(torch.float32)
