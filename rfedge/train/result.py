"""What a run tells while it lasts and when it ends, and what its checkpoint says of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

import rfedge
from rfedge.data.image_text import ImageTextData
from rfedge.train.config import TrainConfig
from rfedge.train.sources import TrainingData
from rfedge.train.state import Progress

_PLACES: Final = ("output", "cache", "resume", "data", "initial_checkpoint", "image_text")


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One step as the progress bar sees it; `share` is the part of the run that is done, 0 to 1."""

    step: int
    share: float
    loss: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run came to.

    Attributes:
        first_loss, last_loss: mean training loss of the first and of the last `num_averaged` steps.
        validation_loss, validation_gripper_accuracy: on held-out segments at the end; None when none were held out.
        validation_caption_perplexity, validation_vqa_perplexity: a token of the held-out pairs of each kind at the end;
            None when there were none.
        initialised: parts of the policy from the seed, such as "head.pose"; empty when a checkpoint had them all.
        steps, epochs, seconds: over all parts of the run; seconds of training and measuring, without the frame cache.
        stopped: the run was asked to stop before its end; state and checkpoint are of the last step.
    """

    first_loss: float
    last_loss: float
    num_averaged: int
    validation_loss: float | None
    validation_gripper_accuracy: float | None
    validation_caption_perplexity: float | None
    validation_vqa_perplexity: float | None
    initialised: tuple[str, ...]
    checkpoint: Path
    steps: int
    epochs: float
    seconds: float
    stopped: bool = False


def train_result(
    config: TrainConfig,
    sources: TrainingData,
    state: Progress,
    validation: dict[str, float],
    initialised: Collection[str],
    checkpoint: Path,
) -> TrainResult:
    """Sum up a run that stands at `state`, measured `validation` last and sampled the parameters `initialised`."""
    first_loss, last_loss = state.mean_losses()
    return TrainResult(
        first_loss=first_loss,
        last_loss=last_loss,
        num_averaged=state.num_averaged,
        validation_loss=validation.get("validation_loss"),
        validation_gripper_accuracy=validation.get("validation_gripper_accuracy"),
        validation_caption_perplexity=validation.get("validation_caption_perplexity"),
        validation_vqa_perplexity=validation.get("validation_vqa_perplexity"),
        initialised=tuple(sorted({".".join(name.split(".")[:2]) for name in initialised})),
        checkpoint=checkpoint,
        steps=state.step,
        epochs=max(0, state.step - config.head_first_steps) * config.batch_size / len(sources.training),
        seconds=state.seconds,
    )


def checkpoint_metadata(
    config: TrainConfig,
    sources: TrainingData,
    pairs: ImageTextData | None,
    result: TrainResult,
    num_processes: int,
    history: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return what a checkpoint's config.json says of its training, as JSON values, without where files lay.

    `history` is what the initial checkpoint says of its own; it becomes "initial".
    """
    segments = sources.training.segments
    return {
        "rfedge_version": rfedge.__version__,
        "torch_version": torch.__version__,
        "training": config.model_dump(mode="json", exclude={"policy", *_PLACES}),
        "num_processes": num_processes,  # at the end: a run may go on with another number
        "dataset": {
            "frames_sha256": sources.cache.content_sha256,
            "scenes": list(sources.scenes),
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
            "steps": result.steps,
            "epochs": result.epochs,
            "seconds": result.seconds,
            "first_loss": result.first_loss,
            "last_loss": result.last_loss,
            "drawn_from_seed": list(result.initialised),
            "num_averaged_steps": result.num_averaged,
            "validation_loss": result.validation_loss,
            "validation_gripper_accuracy": result.validation_gripper_accuracy,
            "validation_caption_perplexity": result.validation_caption_perplexity,
            "validation_vqa_perplexity": result.validation_vqa_perplexity,
        },
        "initial": history,
    }
