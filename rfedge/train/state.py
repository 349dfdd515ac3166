"""Training states: everything a killed run needs to go on as if nothing had happened, as safetensors and JSON.

state/step-0000200/parameters.safetensors   the policy
                   optimizer.safetensors    AdamW's moments by parameter name, random states
                   state.json               step, sampler, losses so far, and the options that must not change
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rfedge.atomic import atomic_directory
from rfedge.data.windows import SamplerState
from rfedge.errors import ArtifactError, ConfigError, explain
from rfedge.model import RoboFlamingo

__all__ = ["Progress", "latest_state", "load_state", "read_document", "remove_states", "save_state"]

_PARAMETERS: Final = "parameters.safetensors"
_OPTIMIZER: Final = "optimizer.safetensors"
_DOCUMENT: Final = "state.json"
_PREFIX: Final = "step-"
_RNG: Final = "random_state.cpu"
_CUDA_RNG: Final = "random_state.cuda"


@dataclass(slots=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        sampler: state after the last batch that was trained on.
        image_text: the same of each kind of image-text pairs.
        seconds: training time so far, over all parts of the run.
        first_losses, last_losses: losses of the first and the latest steps, oldest first.
    """

    step: int = 0
    sampler: SamplerState = field(default_factory=SamplerState)
    image_text: dict[str, SamplerState] = field(default_factory=dict)
    seconds: float = 0.0
    first_losses: list[float] = field(default_factory=list)
    last_losses: list[float] = field(default_factory=list)


def save_state(
    folder: Path,
    policy: RoboFlamingo,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    decisive: dict[str, Any],
    *,
    keep: int,
) -> Path:
    """Write `folder/step-NNNNNNN` atomically, then remove all but the newest `keep` states.

    Args:
        folder: the run's state folder.
        policy: stored whole, frozen parts included.
        optimizer: AdamW over some of its parameters.
        progress: where the run stands.
        decisive: JSON values that a resumed run must repeat.
        keep: states to keep.
    """
    path = folder / f"{_PREFIX}{progress.step:07d}"
    with atomic_directory(path, overwrite=True) as temporary:
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in policy.state_dict().items()}, temporary / _PARAMETERS
        )
        tensors = {_RNG: torch.get_rng_state()}
        if _device(policy).type == "cuda":
            tensors[_CUDA_RNG] = torch.cuda.get_rng_state(_device(policy))
        for name, parameter in policy.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = torch.as_tensor(value).detach().clone().contiguous()
        save_file(tensors, temporary / _OPTIMIZER)
        document = {"schema_version": 1, "progress": asdict(progress), "decisive": decisive}
        (temporary / _DOCUMENT).write_text(json.dumps(document, indent=2) + "\n")
    for old in _states(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def latest_state(folder: Path) -> Path | None:
    """Return the newest state in `folder`, or None."""
    return next(reversed(_states(folder)), None)


def remove_states(folder: Path) -> None:
    """Forget every state in `folder`: the run starts over."""
    for path in _states(folder):
        shutil.rmtree(path)


def _states(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.name.startswith(_PREFIX) and path.name[len(_PREFIX) :].isdecimal())
    return sorted(found, key=lambda path: int(path.name[len(_PREFIX) :]))


def read_document(path: Path, decisive: dict[str, Any]) -> Progress:
    """Return where the run in state `path` stands.

    Raises:
        ConfigError: an option differs from the one the run was started with; the text names it.
        ArtifactError: the state is damaged.
    """
    try:
        document = json.loads((path / _DOCUMENT).read_bytes())
        before = dict(document["decisive"])
        stored = dict(document["progress"])
        image_text = {kind: SamplerState(**state) for kind, state in stored.get("image_text", {}).items()}
        progress = Progress(**{**stored, "sampler": SamplerState(**stored["sampler"]), "image_text": image_text})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path / _DOCUMENT, error) from None
    for name, value in decisive.items():
        if before.get(name) != value:
            raise ConfigError(
                explain(
                    f"{name} of the run in {path.parent.parent}",
                    got=value,
                    expected=f"{before.get(name)}, with which it was started",
                    remedy="Repeat the options to go on, pass --no-resume to start over, or choose another --output.",
                )
            )
    return progress


def load_state(path: Path, policy: RoboFlamingo, optimizer: torch.optim.Optimizer) -> None:
    """Put the state `path` into `policy`, `optimizer` and PyTorch's global random state.

    Raises:
        ArtifactError: a file is damaged or of another policy.
    """
    try:
        policy.load_state_dict(load_file(path / _PARAMETERS))
        tensors = load_file(path / _OPTIMIZER)
        torch.set_rng_state(tensors[_RNG])
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise _damaged(path, error) from None
    if _CUDA_RNG in tensors and _device(policy).type == "cuda":
        torch.cuda.set_rng_state(tensors[_CUDA_RNG], _device(policy))
    for name, parameter in policy.named_parameters():
        if f"exp_avg.{name}" in tensors:
            optimizer.state[parameter] = {
                "step": tensors[f"step.{name}"],  # AdamW keeps it on the CPU
                "exp_avg": tensors[f"exp_avg.{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter.device),
            }


def _device(policy: RoboFlamingo) -> torch.device:
    return next(policy.parameters()).device


def _damaged(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        explain(
            f"training state {path}",
            got=f"{type(error).__name__} ({error})",
            expected="files written by `rfedge train`",
            remedy="Remove this state's folder to go on from the one before, or pass --no-resume.",
        )
    )
