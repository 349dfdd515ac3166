"""Checkpoints on disk: config.json + model.safetensors (or its shards) + tokenizer.json; no code, no pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import ValidationError

from rfedge.bundle.artifact import hash_file
from rfedge.config import PolicyConfig
from rfedge.errors import ArtifactError
from rfedge.io.atomic import atomic_directory
from rfedge.io.disk import read_json
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model.meta import empty_policy
from rfedge.model.policy import RoboFlamingo
from rfedge.model.weight_shards import (
    INDEX_NAME,
    MAX_SHARD_BYTES,
    WEIGHTS_NAME,
    TensorSpec,
    read_weights,
    weight_paths,
    write_weights,
)

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
    """Return the sha256 of the weights: of model.safetensors, or of its shards' sums in the order of the index."""
    paths = weight_paths(directory)
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
