"""What `rfedge pretrain` was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rfedge.config import PolicyConfig
from rfedge.records.plan import Option
from rfedge.train.config import INSTRUCTIONS_HELP, VOCAB_SIZE_HELP, InstructionSource


class PretrainConfig(BaseModel):
    """One run.

    Attributes:
        initial_checkpoint: whose weights and tokenizer to start from; None initialises weights from `seed`.
        output: gets checkpoint/, state/, tensorboard/ and metrics.jsonl.
        steps, minutes: when to stop; the first one reached counts.
        mixed_precision: weights and moments stay fp32.
        light: see `rfedge.train.pretraining.scene_batches`.
        learning_rate: after a warm-up; then half a cosine down.
        validation_frames: of the held-out segments, evenly spread.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: PolicyConfig
    initial_checkpoint: Path | None = None
    data: Annotated[Path, Option("Demonstrations in the CALVIN format, with scene_obs.")]
    output: Annotated[Path, Option("Folder of the run; the result is its checkpoint/ folder.")]
    steps: Annotated[int | None, Option("Stop after this many steps.", panel="Length", min=1)] = Field(None, ge=1)
    minutes: Annotated[float | None, Option("Stop after this much training time, resumed parts included.")] = Field(
        None, gt=0
    )
    save_every: Annotated[int, Option("Steps between two training states; 0 for the end only.", min=0)] = Field(250, ge=0)
    resume: Annotated[bool, Option("Go on from the newest state in --output, or start over.")] = True
    batch_size: Annotated[int, Option("Frames per step.", panel="Optimization", min=1)] = Field(32, ge=1)
    learning_rate: Annotated[float, Option("Peak learning rate.")] = Field(5e-4, gt=0)
    warmup_steps: int = Field(200, ge=0)
    weight_decay: float = Field(0.02, ge=0)
    gradient_clip: float = Field(1.0, gt=0)
    language_weight: Annotated[
        float, Option("Factor of the language loss; 0 leaves texts and decoder out, for the tower alone.")
    ] = Field(1.0, ge=0)
    pointing_weight: Annotated[
        float, Option("Factor of the loss of queries that point at things, beside the language loss.")
    ] = Field(1.0, ge=0)
    seed: Annotated[int, Option("Of weights, order of frames and questions.", min=0)] = Field(0, ge=0)
    light: Annotated[
        float,
        Option("Deviation of random gains of the pictures' channels; another renderer's light.", panel="Data", min=0),
    ] = Field(0.0, ge=0)
    instructions: Annotated[InstructionSource, Option(INSTRUCTIONS_HELP)] = "data"
    vocab_size: Annotated[int | None, Option(VOCAB_SIZE_HELP)] = Field(None, ge=512)
    validation_fraction: Annotated[float, Option("Share of the segments held out.")] = Field(0.05, ge=0, lt=1)
    validation_frames: int = Field(320, ge=1)
    validate_every: Annotated[int, Option("Steps between two measurements; 0 for the end only.", min=0)] = Field(500, ge=0)
    keep_states: int = Field(2, ge=1)
    cache: Annotated[Path | None, Option("Folder of the frame cache; default beside the data.")] = None
    mixed_precision: Annotated[
        Literal["no", "bf16"],
        Option("no, or bf16 where the processor multiplies it faster (`rfedge doctor`).", panel="Machine"),
    ] = "no"
    num_threads: Annotated[int | None, Option("CPU threads of PyTorch.", min=1)] = Field(None, ge=1)

    def resume_key(self) -> dict[str, Any]:
        """Return the fields that must not change when a run is resumed, as JSON values."""
        free = {
            "data", "output", "steps", "minutes", "validation_frames", "validate_every", "save_every", "keep_states",
            "resume", "num_threads", "cache", "initial_checkpoint",
        }  # fmt: skip
        return {"pretraining": True, **self.model_dump(mode="json", exclude=free)}
