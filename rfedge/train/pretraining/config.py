"""Options of `rfedge pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from rfedge.records.plan import Option
from rfedge.train.config import AtLeastOne, NotNegative, NotNegativeFloat, Positive, RunConfig


class PretrainConfig(RunConfig):
    data: Annotated[Path, Option("Demonstrations in the CALVIN format, with scene_obs.")]
    save_every: Annotated[int, Option("Steps between two states to resume from; 0 for the end only.", min=0)] = Field(
        250, ge=0
    )
    batch_size: Annotated[AtLeastOne, Option("Frames per step.", panel="Optimization", min=1)] = 32
    # after a warm-up; then half a cosine down
    learning_rate: Annotated[Positive, Option("Peak learning rate.")] = 5e-4
    warmup_steps: NotNegative = 200
    light: Annotated[
        NotNegativeFloat, Option("Deviation of random gains of the pictures' channels; another renderer's light.", min=0)
    ] = 0.0
    validation_fraction: Annotated[float, Field(ge=0, lt=1), Option("Share of the segments held out.")] = 0.05
    validate_every: Annotated[NotNegative, Option("Steps between two measurements; 0 for the end only.", min=0)] = 500
    mixed_precision: Annotated[
        Literal["no", "bf16"], Option("no, or bf16 where the processor multiplies it faster (`rfedge doctor`).")
    ] = "no"
    weight_decay: NotNegativeFloat = 0.02
    language_weight: Annotated[
        float,
        Option("Factor of the language loss; 0 leaves texts and decoder out, for the tower alone.", panel="Optimization"),
    ] = Field(1.0, ge=0)
    pointing_weight: Annotated[
        NotNegativeFloat, Option("Factor of the loss of queries that point at things, beside the language loss.")
    ] = 1.0
    validation_frames: AtLeastOne = 320  # of the held-out segments, evenly spread

    free: ClassVar[frozenset[str]] = RunConfig.free | {"validation_frames", "initial_checkpoint"}

    def resume_key(self) -> dict[str, Any]:
        """Return the fields that must not change when a run is resumed, as JSON values."""
        return {"pretraining": True, **super().resume_key()}
