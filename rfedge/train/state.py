"""Training states: everything a killed run needs to go on as if nothing had happened, as safetensors and JSON.

state/step-0000200/parameters.safetensors   the policy
                   optimizer.safetensors    AdamW's moments by parameter name, random states
                   state.json               step, sampler, losses so far, and the options that must not change

Weights and moments are whole whatever number of processes wrote them, so any other number can go on.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rfedge.data.windows import SamplerState
from rfedge.errors import ArtifactError, ConfigError
from rfedge.io.atomic import atomic_directory
from rfedge.io.disk import read_json
from rfedge.train.compute_context import full_tensor, full_weights, like_parameter
from rfedge.train.distributed import Processes

# Of a run, in its output folder.
CHECKPOINT_FOLDER: Final = "checkpoint"
STATE_FOLDER: Final = "state"
_TENSORBOARD_FOLDER: Final = "tensorboard"
# The first and the last loss of a run are means over this many steps: a single batch says little.
_NUM_AVERAGED_STEPS: Final = 20

_PARAMETERS: Final = "parameters.safetensors"
_OPTIMIZER: Final = "optimizer.safetensors"
_DOCUMENT: Final = "state.json"
_PREFIX: Final = "step-"
_RNG: Final = "random_state.cpu"
_CUDA_RNG: Final = "random_state.cuda"
# Options that came after the first states were written, with what those were written under.
_LATER_OPTIONS: Final = {
    "mixed_precision": "no",
    "optimizer": "adamw",
    "vision_tokens": False,
    "instructions": "data",
    "vocab_size": None,
    "pointing_weight": 0.0,
    "pointing_batch_size": 32,
    "light": 0.0,
    "task_weight": 0.0,
}


@dataclass(slots=True)
class Progress:
    step: int = 0
    sampler: SamplerState = field(default_factory=SamplerState)  # state after the last batch that was trained on
    image_text: dict[str, SamplerState] = field(default_factory=dict)  # the same of each kind of image-text pairs
    scene: SamplerState = field(default_factory=SamplerState)  # the same of the frames that are pointed at
    seconds: float = 0.0  # training time so far, over all parts of the run
    # first_losses, last_losses: losses of the first and the latest steps, oldest first
    first_losses: list[float] = field(default_factory=list)
    last_losses: list[float] = field(default_factory=list)
    scaler: dict[str, float] = field(default_factory=dict)  # state of fp16's loss scale; empty in other precisions

    @property
    def num_averaged(self) -> int:
        """Steps that each of `mean_losses` is over: fewer in a run so short that the two would overlap."""
        return min(_NUM_AVERAGED_STEPS, max(1, self.step // 2))

    def add_loss(self, loss: float) -> None:
        """Keep the loss of a step, as long as it is one of the first or the latest ones."""
        if len(self.first_losses) < _NUM_AVERAGED_STEPS:
            self.first_losses.append(loss)
        self.last_losses = [*self.last_losses, loss][-_NUM_AVERAGED_STEPS:]

    def mean_losses(self) -> tuple[float, float]:
        """Return the mean of the first and of the latest losses; NaN before the first step."""
        count = self.num_averaged
        return _mean(self.first_losses[:count]), _mean(self.last_losses[-count:])


def save_state(
    folder: Path,
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    resume_key: dict[str, Any],
    *,
    keep: int,
    processes: Processes,
) -> None:
    """Write `folder/step-NNNNNNN` atomically and keep the newest `keep` states; all processes must call it together."""
    weights = full_weights(policy, processes)
    tensors = {_RNG: torch.get_rng_state()}
    for name, parameter in policy.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            whole = full_tensor(torch.as_tensor(value))
            if processes.is_first:
                tensors[f"{key}.{name}"] = whole.detach().cpu().clone().contiguous()
    if not processes.is_first:
        return
    path = folder / f"{_PREFIX}{progress.step:07d}"
    with atomic_directory(path, overwrite=True) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary / _PARAMETERS)
        if _device(policy).type == "cuda":
            tensors[_CUDA_RNG] = torch.cuda.get_rng_state(_device(policy))
        save_file(tensors, temporary / _OPTIMIZER)
        document = {"schema_version": 1, "progress": asdict(progress), "decisive": resume_key}
        (temporary / _DOCUMENT).write_text(json.dumps(document, indent=2) + "\n")
    for old in _states(folder)[:-keep]:
        shutil.rmtree(old)


def resume_weights(
    output: Path, learner: nn.Module, resume_key: dict[str, Any], *, resume: bool, processes: Processes
) -> tuple[Progress, Path | None]:
    """Load the newest state in `output` into `learner`, which must be whole; return where the run stands, and its folder."""
    folder = output / STATE_FOLDER
    if processes.is_first and not (resume or processes.restarted):
        for path in _states(folder):
            shutil.rmtree(path)
        shutil.rmtree(output / _TENSORBOARD_FOLDER, ignore_errors=True)
    newest = next(reversed(_states(folder)), None)
    name = processes.agree("" if newest is None else newest.name)
    if not name:
        return Progress(), None
    path = folder / name
    progress = _read_document(path, resume_key)
    try:
        learner.load_state_dict(load_file(path / _PARAMETERS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _damaged(path, error) from None
    return progress, path


def _read_document(path: Path, resume_key: dict[str, Any]) -> Progress:
    try:
        document = read_json(path / _DOCUMENT)
        before = {**_LATER_OPTIONS, **document["decisive"]}
        stored = dict(document["progress"])
        image_text = {kind: SamplerState(**state) for kind, state in stored.get("image_text", {}).items()}
        samplers = {"sampler": SamplerState(**stored["sampler"]), "scene": SamplerState(**stored.get("scene", {}))}
        progress = Progress(**{**stored, **samplers, "image_text": image_text})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path / _DOCUMENT, error) from None
    for name, value in resume_key.items():
        if before.get(name) != value:
            expected = f"{before.get(name)}, with which it was started"
            remedy = "Repeat the options to go on, pass --no-resume to start over, or choose another --output."
            raise ConfigError(f"{name} of the run in {path.parent.parent}", got=value, expected=expected, remedy=remedy)
    return progress


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _states(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.name.startswith(_PREFIX) and path.name[len(_PREFIX) :].isdecimal())
    return sorted(found, key=lambda path: int(path.name[len(_PREFIX) :]))


def load_moments(path: Path, policy: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the rest of the state `path` into `optimizer`, whose parameters may be spread, and PyTorch's random state."""
    try:
        tensors = load_file(path / _OPTIMIZER)
        torch.set_rng_state(tensors.pop(_RNG))
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise _damaged(path, error) from None
    cuda_state = tensors.pop(_CUDA_RNG, None)
    if cuda_state is not None and _device(policy).type == "cuda":
        torch.cuda.set_rng_state(cuda_state, _device(policy))
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, parameter_name = name.partition(".")
        by_name.setdefault(parameter_name, {})[key] = tensor
    for name, parameter in policy.named_parameters():
        if name in by_name:
            optimizer.state[parameter] = {key: _moment(value, parameter) for key, value in by_name[name].items()}


def _moment(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor | int:
    """AdamW keeps its step on the CPU, bitsandbytes as a number; 8-bit tables have shapes of their own."""
    if value.ndim == 0:
        return value if value.is_floating_point() else int(value)
    return like_parameter(value, parameter) if value.shape == parameter.shape else value.to(parameter.device)


def _device(policy: nn.Module) -> torch.device:
    return next(policy.parameters()).device


def _damaged(path: Path, error: Exception) -> ArtifactError:
    expected = "files written by `rfedge train`"
    remedy = "Remove this state's folder to go on from the one before, or pass --no-resume."
    return ArtifactError(f"training state {path}", got=f"{type(error).__name__} ({error})", expected=expected, remedy=remedy)
