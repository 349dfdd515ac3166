"""Checkpoints on disk: config.json + model.safetensors + tokenizer.json; no code, no pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from rfedge.atomic import atomic_directory
from rfedge.config import PolicyConfig
from rfedge.errors import ArtifactError, explain
from rfedge.model.policy import RoboFlamingo
from rfedge.tokenizer import InstructionTokenizer

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]

CONFIG_NAME: Final = "config.json"
WEIGHTS_NAME: Final = "model.safetensors"
TOKENIZER_NAME: Final = "tokenizer.json"


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
    overwrite: bool = False,
) -> None:
    """Write the folder atomically.

    Args:
        directory: where to; must not exist unless `overwrite`.
        policy: the model; all parameters are stored in their own dtype.
        tokenizer: written beside it, so that a checkpoint needs nothing else.
        metadata: JSON values about the training; kept in config.json, never in file names.
        overwrite: replace an existing checkpoint.

    Raises:
        ArtifactError: `directory` exists and `overwrite` is false.
    """
    with atomic_directory(directory, overwrite=overwrite) as temporary:
        document = {
            "format": "rfedge-checkpoint",
            "schema_version": 1,
            "policy": policy.config.model_dump(mode="json"),
            "metadata": metadata,
        }
        (temporary / CONFIG_NAME).write_text(json.dumps(document, indent=2) + "\n")
        save_file({name: tensor.contiguous() for name, tensor in policy.state_dict().items()}, temporary / WEIGHTS_NAME)
        tokenizer.save(temporary / TOKENIZER_NAME)


def load_checkpoint(directory: Path) -> Checkpoint:
    """Read a folder written by `save_checkpoint`.

    Raises:
        ArtifactError: a file is missing or damaged, or the weights do not fit the configuration; the text names which.
    """
    for name in (CONFIG_NAME, WEIGHTS_NAME, TOKENIZER_NAME):
        if not (directory / name).is_file():
            raise ArtifactError(
                explain(
                    f"checkpoint {directory}",
                    got="no folder" if not directory.is_dir() else f"no {name}",
                    expected=f"{CONFIG_NAME}, {WEIGHTS_NAME} and {TOKENIZER_NAME}",
                    remedy="Give the checkpoint folder that `rfedge train` wrote.",
                )
            )
    try:
        document = json.loads((directory / CONFIG_NAME).read_bytes())
        config = PolicyConfig.model_validate(document["policy"])
        metadata = dict(document["metadata"])
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            explain(
                f"checkpoint file {CONFIG_NAME}", got=str(error), expected="a policy configuration", remedy="Copy it again."
            )
        ) from None
    try:
        weights = load_file(directory / WEIGHTS_NAME)
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(
            explain(f"checkpoint file {WEIGHTS_NAME}", got=str(error), expected="safetensors", remedy="Copy it again.")
        ) from None
    policy = RoboFlamingo(config)  # not on meta: buffers that are computed, not stored, must be real
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
                explain(
                    f"checkpoint tensor {name!r}",
                    got=found.get(name, "nothing"),
                    expected=expected.get(name, "no such tensor"),
                    remedy=f"{CONFIG_NAME} and {WEIGHTS_NAME} are not of the same policy.",
                )
            )
