"""Checkpoints on disk: config.json + model.safetensors (or its shards) + tokenizer.json; no code, no pickle.

Weights are written shard by shard, in the layout that Hugging Face reads, so that a model larger than the memory can be
stored; they are read as views of the mapped files, so that a tensor costs memory when it is first used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import safetensors
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from rfedge.bundle.artifact import hash_file
from rfedge.config import PolicyConfig
from rfedge.errors import ArtifactError
from rfedge.io.atomic import atomic_directory
from rfedge.io.disk import read_json
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model.meta import empty_policy
from rfedge.model.policy import RoboFlamingo

WEIGHTS_NAME: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"
MAX_SHARD_BYTES: Final = 500_000_000  # one of them is in memory while it is written
_REMEDY: Final = "Copy the checkpoint again."
CONFIG_NAME: Final = "config.json"
TOKENIZER_NAME: Final = "tokenizer.json"
# In the metadata of a checkpoint whose backbone alone was trained.
HEAD_IS_UNTRAINED: Final = "head_is_untrained"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint; the policy is in evaluation mode."""

    policy: RoboFlamingo
    tokenizer: InstructionTokenizer
    metadata: dict[str, Any]

    @property
    def config(self) -> PolicyConfig:
        return self.policy.config


def save_checkpoint(
    directory: Path,
    policy: RoboFlamingo,
    tokenizer: InstructionTokenizer,
    metadata: dict[str, Any],
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the folder atomically.

    Args:
        dtype: what floating-point parameters are stored in; None stores all in their own.
        metadata: JSON values about the training; kept in config.json, never in file names.
        max_shard_bytes: weights above this are stored in several files.

    Raises:
        ArtifactError: `directory` exists and `overwrite` is false.
    """
    tensors = {
        name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        for name, tensor in policy.state_dict().items()
    }
    specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_checkpoint(
        directory,
        policy.config,
        tokenizer,
        metadata,
        specs,
        tensors.__getitem__,
        overwrite=overwrite,
        max_shard_bytes=max_shard_bytes,
    )


def write_checkpoint(
    directory: Path,
    config: PolicyConfig,
    tokenizer: InstructionTokenizer,
    metadata: dict[str, Any],
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], torch.Tensor],
    *,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the folder atomically from tensors of `RoboFlamingo(config).state_dict()` that are made one at a time."""
    with atomic_directory(directory, overwrite=overwrite) as temporary:
        document = {
            "format": "rfedge-checkpoint",
            "schema_version": 1,
            "policy": config.model_dump(mode="json"),
            "metadata": metadata,
        }
        (temporary / CONFIG_NAME).write_text(json.dumps(document, indent=2) + "\n")
        tokenizer.save(temporary / TOKENIZER_NAME)
        write_weights(temporary, specs, read, max_shard_bytes=max_shard_bytes, on_bytes=on_bytes)


def checkpoint_sha256(directory: Path) -> str:
    """Return the sha256 of the weights: of model.safetensors, or of its shards' sums in the order of the index.

    Raises ArtifactError where the weights are not there.
    """
    paths = [directory / name for name in _names_by_file(directory)]
    if len(paths) == 1 and paths[0].name == WEIGHTS_NAME:
        return hash_file(paths[0])
    sums = hashlib.sha256()
    for path in paths:
        sums.update(f"{hash_file(path)}  {path.name}\n".encode())
    return sums.hexdigest()


def load_checkpoint(directory: Path) -> Checkpoint:
    """Read a folder written by `save_checkpoint`.

    The policy computes in float32 whatever the dtype on disk; float32 weights stay views of the mapped files, so they
    take memory when they are first used.

    Raises:
        ArtifactError: a file is missing or damaged, or the weights do not fit the configuration; the text names which.
    """
    for name in (CONFIG_NAME, WEIGHTS_NAME, TOKENIZER_NAME):
        if not (directory / name).is_file() and not (name == WEIGHTS_NAME and (directory / INDEX_NAME).is_file()):
            raise ArtifactError(
                f"checkpoint {directory}",
                got="no folder" if not directory.is_dir() else f"no {name}",
                expected=f"{CONFIG_NAME}, {WEIGHTS_NAME} and {TOKENIZER_NAME}",
                remedy="Give the checkpoint folder that `rfedge train` or `rfedge import` wrote.",
            )
    try:
        document = read_json(directory / CONFIG_NAME)
        config = PolicyConfig.model_validate(document["policy"])
        metadata = dict(document["metadata"])
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"checkpoint file {CONFIG_NAME}", got=str(error), expected="a policy configuration", remedy="Copy it again."
        ) from None
    policy = empty_policy(config)
    weights = read_weights(directory, dtype=torch.float32)
    _check_weights(policy, weights)
    policy.load_state_dict(weights, assign=True)
    tokenizer = InstructionTokenizer.load(directory / TOKENIZER_NAME, config.decoder.text_length)
    return Checkpoint(policy.eval(), tokenizer, metadata)


def _check_weights(policy: RoboFlamingo, weights: dict[str, torch.Tensor]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ArtifactError(
                f"checkpoint tensor {name!r}",
                got=found.get(name, "nothing"),
                expected=expected.get(name, "no such tensor"),
                remedy=f"{CONFIG_NAME} and {WEIGHTS_NAME} are not of the same policy.",
            )


class TensorSpec(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_weights(
    folder: Path,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], torch.Tensor],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Write every tensor, in this order, into `folder`: model.safetensors, or its shards and the index.

    `read` is called once for each name and its result is not kept; a tensor above `max_shard_bytes` has its own file.
    """
    shards = _plan_shards(specs, max_shard_bytes)
    if len(shards) == 1:
        _write_file(folder / WEIGHTS_NAME, shards[0], specs, read, on_bytes)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file_name, names, specs, read, on_bytes)
        weight_map |= dict.fromkeys(names, file_name)
    total = sum(spec.size_bytes for spec in specs.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _plan_shards(specs: Mapping[str, TensorSpec], max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, spec in specs.items():
        if shards[-1] and filled + spec.size_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += spec.size_bytes
    return shards


def _write_file(
    path: Path,
    names: list[str],
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], torch.Tensor],
    on_bytes: Callable[[int], None],
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        tensor = read(name).detach()
        if TensorSpec(tensor.dtype, tuple(tensor.shape)) != specs[name]:
            raise ValueError(f"{name}: got {tensor.dtype} {tuple(tensor.shape)}, expected {specs[name]}")
        tensors[name] = tensor.contiguous()
        on_bytes(specs[name].size_bytes)
    save_file(tensors, path, metadata={"format": "pt"})


def read_weights(folder: Path, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return every tensor as a view of the mapped files, or converted to `dtype` in memory."""
    tensors: dict[str, torch.Tensor] = {}
    for file_name, expected in _names_by_file(folder).items():
        try:
            part = load_file(folder / file_name)
        except (safetensors.SafetensorError, OSError) as error:
            raise _damaged(file_name, str(error), "safetensors") from None
        promised = set(part) if expected is None else expected
        for name in sorted(promised ^ part.keys()):
            got, wanted = ("no tensor", "one") if name in promised else ("a tensor", "none")
            raise _damaged(file_name, f"{got} {name!r}", f"{wanted}, as {INDEX_NAME} says")
        for name in list(part):  # file by file, so that the mapping of one is gone before the next is converted
            tensor = part.pop(name)
            tensors[name] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    return tensors


def _names_by_file(folder: Path) -> dict[str, set[str] | None]:
    """Return the files in order, each with the tensors that the index expects in it; None where there is no index."""
    if (folder / WEIGHTS_NAME).is_file():
        return {WEIGHTS_NAME: None}
    files: dict[str, set[str]] = {}
    for name, file_name in _read_index(folder).items():
        files.setdefault(file_name, set()).add(name)
    return dict(files)


def _read_index(folder: Path) -> dict[str, str]:
    path = folder / INDEX_NAME
    try:
        weight_map: dict[str, str] = read_json(path)["weight_map"]
        # A name with a folder in it could reach outside of the checkpoint.
        files = set(weight_map.values())
        valid = bool(files) and all(Path(name).name == name for name in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(INDEX_NAME, repr(error), "a map from tensors to files") from None
    if not valid:
        raise _damaged(INDEX_NAME, "names of files elsewhere or none", "files beside it")
    for name in sorted(files):
        if not (folder / name).is_file():
            raise _damaged(name, "no file", f"the shard that {INDEX_NAME} names")
    return weight_map


def _damaged(name: str, got: str, expected: str) -> ArtifactError:
    return ArtifactError(f"checkpoint file {name}", got=got, expected=expected, remedy=_REMEDY)
