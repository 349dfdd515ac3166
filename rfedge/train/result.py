"""Progress and results of a run, and what its checkpoint says of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

import rfedge
from rfedge.data.image_text import ImageTextData
from rfedge.train.config import TrainConfig
from rfedge.train.sources import TrainingData

_PLACES: Final = ("output", "cache", "resume", "data", "initial_checkpoint", "image_text")
VALIDATION_FIELDS: Final = (
    "validation_loss",
    "validation_gripper_accuracy",
    "validation_caption_perplexity",
    "validation_vqa_perplexity",
)
_NOT_IN_CHECKPOINT: Final = ("initialised", "num_averaged", "checkpoint", "stopped")


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One step as the progress bar sees it; `share` is the part of the run that is done, 0 to 1."""

    step: int
    share: float
    loss: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunResult:
    # first_loss, last_loss: mean training loss, weighted sum, of the first and of the last `num_averaged` steps
    first_loss: float
    last_loss: float
    num_averaged: int
    checkpoint: Path
    # steps, seconds: over all parts of the run; seconds of training and measuring, without the frame cache
    steps: int
    seconds: float
    stopped: bool = False  # the run was asked to stop before its end; state and checkpoint are of the last step


@dataclass(frozen=True, kw_only=True)
class TrainResult(RunResult):
    """Results of `train_policy`.

    Attributes:
        validation_loss, validation_gripper_accuracy: on held-out segments at the end; None when none were held out.
        validation_caption_perplexity, validation_vqa_perplexity: a token of the held-out pairs of each kind at the end;
            None when there were none.
        initialised: parts of the policy from the seed, such as "head.pose"; empty when a checkpoint had them all.
        epochs: over all parts of the run.
    """

    validation_loss: float | None
    validation_gripper_accuracy: float | None
    validation_caption_perplexity: float | None
    validation_vqa_perplexity: float | None
    initialised: tuple[str, ...]
    epochs: float


def checkpoint_metadata(
    config: TrainConfig,
    sources: TrainingData,
    pairs: ImageTextData | None,
    result: TrainResult,
    num_processes: int,
    history: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return what a checkpoint's config.json says of its training, as JSON values; `history` is its initial checkpoint's."""
    segments = sources.training.segments
    return {
        "rfedge_version": rfedge.__version__,
        "torch_version": torch.__version__,
        "training": config.model_dump(mode="json", exclude={"policy", *_PLACES}),
        "num_processes": num_processes,  # at the end: a run may go on with another number
        "dataset": {
            "frames_sha256": sources.cache.content_sha256,
            "scenes": sources.scenes,
            "num_segments": len(segments),
            "num_frames": len(sources.cache.numbers),
            "tasks": sorted({segment.task for segment in segments}),
        },
        "image_text": None
        if pairs is None
        else {
            "content_sha256": pairs.content_sha256,
            "num_training": {kind: len(part) for kind, part in pairs.training.items()},
            "num_held_out": {kind: len(part) for kind, part in pairs.held_out.items()},
        },
        "result": {
            "drawn_from_seed": list(result.initialised),
            "num_averaged_steps": result.num_averaged,
            **{name: value for name, value in asdict(result).items() if name not in _NOT_IN_CHECKPOINT},
        },
        "initial": history,
    }
