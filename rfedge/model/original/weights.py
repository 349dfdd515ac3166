"""Read the original weight files into a policy, in the original's order: language model, CLIP, OpenFlamingo, RoboFlamingo.

Nothing but tensors is unpickled. A later file wins over an earlier one; within a file the first of two copies counts.
"""

from __future__ import annotations

import pickle  # noqa: TID251 - only its exception: torch.load(weights_only=True) raises it for anything but tensors
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import safetensors
import torch
from safetensors.torch import load_file

from rfedge.errors import ArtifactError, explain
from rfedge.model.original.names import IGNORED, OUTPUT_PROJECTION, clip_names, model_names
from rfedge.model.policy import RoboFlamingo

__all__ = ["OriginalWeights", "WeightsReport", "load_original", "read_tensors"]

_GRIPPER: Final = "backbone.resampler_gripper."


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """What a load found.

    Attributes:
        taken: tensors taken, by file.
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


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a .safetensors, .bin, .pt or .pth file, without the optimizer's.

    Raises:
        ArtifactError: the file is missing, damaged, or holds more than tensors and plain containers.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        document = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtifactError(
            explain(f"weights {path}", got=first_line, expected="a file of tensors", remedy="Copy it again.")
        ) from None
    for name in ("model_state_dict", "state_dict"):
        if isinstance(document, Mapping) and isinstance(document.get(name), Mapping):
            document = document[name]
    if not isinstance(document, Mapping):
        raise ArtifactError(
            explain(f"weights {path}", got=type(document).__name__, expected="tensors by name", remedy="Give another file.")
        )
    return {str(name): tensor for name, tensor in document.items() if isinstance(tensor, torch.Tensor)}


def load_original(
    policy: RoboFlamingo, files: OriginalWeights, *, without: Sequence[str] = ()
) -> tuple[WeightsReport, torch.Tensor]:
    """Fill `policy` in place.

    Args:
        policy: built for these files; its vocabulary is the tokenizer's, so the language model's rows are cut to it.
        files: where to read.
        without: prefixes of our names that are not expected, such as "head." without a RoboFlamingo file.

    Returns:
        the report, and the output projection (vocabulary, width) of the language model: its own or the embedding.

    Raises:
        ArtifactError: a file cannot be read, or a tensor has another shape than the policy's.
    """
    parts = sorted(files.language_model.glob("*.safetensors")) or sorted(files.language_model.glob("pytorch_model*.bin"))
    if not parts:
        raise ArtifactError(
            explain(
                f"language model {files.language_model}",
                got="no weights",
                expected="*.safetensors or pytorch_model*.bin",
                remedy="Copy the folder again.",
            )
        )
    kind = policy.config.decoder.kind
    expected = policy.state_dict()
    expected[OUTPUT_PROJECTION] = torch.empty_like(expected["embedding.weight"])
    values: dict[str, torch.Tensor] = {}
    taken: dict[str, int] = {}
    left_over: list[str] = []
    assumed: list[str] = []
    chain = [*parts, files.vision, files.openflamingo, files.roboflamingo, *files.others]
    for path in (path for path in chain if path is not None):
        tensors = read_tensors(path)
        names = clip_names(tensors) if path == files.vision else model_names(tensors, kind)
        if path in files.others:
            names = {key: name for key, name in names.items() if name and name.startswith(_GRIPPER)}
        found: dict[str, torch.Tensor] = {}
        for key, name in names.items():
            if name is None or (name != IGNORED and name not in expected):
                left_over.append(f"{path.name}: {key}")
            elif name != IGNORED and name not in found:
                found[name] = tensors[key]
        if path in files.others:  # never over what the model's own files hold
            found = {name: tensor for name, tensor in found.items() if name not in values}
        if path in parts:
            _fit_vocabulary(found, expected, assumed)
        for name, tensor in found.items():
            if tensor.shape != expected[name].shape:
                raise ArtifactError(
                    explain(
                        f"weights {path}: {name}",
                        got=tuple(tensor.shape),
                        expected=tuple(expected[name].shape),
                        remedy="The file is of another model.",
                    )
                )
        values.update(found)
        taken[path.name] = len(found)
    if policy.config.resampler.per_camera:
        _copy_missing_resampler(values, assumed)
    projection = values.pop(OUTPUT_PROJECTION, values.get("embedding.weight", expected["embedding.weight"]))
    policy.load_state_dict(values, strict=False)
    missing = [name for name in expected if name not in values and name != OUTPUT_PROJECTION]
    report = WeightsReport(
        taken,
        tuple(name for name in missing if not name.startswith(tuple(without))),
        tuple(left_over),
        tuple(assumed),
    )
    return report, projection.to(torch.float32)


def _fit_vocabulary(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], assumed: list[str]) -> None:
    """Cut or lengthen the rows of the vocabulary to the tokenizer's, as the original does after it added its tokens."""
    for name in ("embedding.weight", OUTPUT_PROJECTION):
        if name not in found:
            continue
        rows, wanted = found[name].shape[0], expected[name].shape[0]
        if rows < wanted:
            new = torch.zeros(wanted - rows, *found[name].shape[1:])
            found[name] = torch.cat([found[name].to(new.dtype), new])
            assumed.append(f"{name}: {wanted - rows} new rows are zero unless a later file holds them")
        found[name] = found[name][:wanted]


def _copy_missing_resampler(values: dict[str, torch.Tensor], assumed: list[str]) -> None:
    shared = {name: tensor for name, tensor in values.items() if name.startswith("backbone.resampler.")}
    copies = {name.replace("backbone.resampler.", _GRIPPER): tensor for name, tensor in shared.items()}
    missing = {name: tensor for name, tensor in copies.items() if name not in values}
    if missing:
        # The original copies its resampler while it is still random, then neither trains nor saves the copy.
        assumed.append("the gripper camera's resampler is in no file: it is a copy of the static camera's")
        values.update(missing)
