"""Configuration of a training run, with one recipe for fine-tuning as in the paper and one for presets from nothing.

Sources: RoboFlamingo section 4.4 and its released training script (batch 6, AdamW 1e-4, warm-up 5000, clip 1, gripper
weight 0.01, decay 0.1 on the gated cross-attention alone).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rfedge.config import MPTConfig, PolicyConfig, head_of_kind, preset, preset_names
from rfedge.data.collection.dataset_records import recorded_conventions
from rfedge.errors import ConfigError
from rfedge.records.plan import Option

LossKind = Literal["huber", "mse"]
TrainableScheme = Literal["paper", "freeze-emb", "freeze-vision", "full", "head"]
ScheduleKind = Literal["constant", "cosine"]
ShiftKind = Literal["none", "window", "frame"]
ParallelKind = Literal["ddp", "fsdp"]
MixedPrecision = Literal["no", "bf16", "fp16"]
OptimizerKind = Literal["adamw", "adamw-8bit"]
InstructionSource = Literal["data", "grammar"]
AtLeastOne = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
NotNegativeFloat = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Recipe(_Config):
    """The numbers that depend on whether the policy starts from trained weights."""

    learning_rate: float  # at a batch of `reference_batch_size` windows; scaled in proportion for others
    reference_batch_size: int
    head_rate: float  # factor of the learning rate for the head
    warmup_steps: int
    schedule: ScheduleKind
    gripper_weight: float  # factor of the gripper's cross-entropy beside the pose loss
    trainable: TrainableScheme
    head_first_steps: int  # steps in which only the head learns, on features computed once
    augmentation: ShiftKind  # random shifts of the images


# from-nothing, measured on PlayTable with playtable-small (docs/log.md): the head learns alone first: on the features of
# random weights it reaches a seventh of the loss in 600 steps and under two minutes, where training all of it together
# found nothing in a hundred slow steps. Then everything learns, the backbone at a hundredth of the head's rate: at a
# tenth it breaks, within five steps, the features that the head has learned to read. Images are not shifted, for the
# same reason. The gripper weighs 0.05, the released script's value for a real robot: at the start 0.05 * ln 2 = 0.035,
# about the size of the Huber loss of the pose, so neither drowns the other.
# pretrained: the same presets once `rfedge pretrain` has taught them to see: everything but the eyes learns at once, and
# the head, which starts from nothing, three times as fast.
_RECIPES: Final = TypeAdapter(dict[str, Recipe]).validate_json(Path(__file__).with_name("recipes.json").read_bytes())
_TRAINED_FROM_NOTHING: Final = ("tiny", "playtable-small")


def recipe_for(name: str, history: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe of a preset, by what its initial checkpoint says of its training and of its own initial one."""
    if name not in _TRAINED_FROM_NOTHING:
        return _RECIPES["paper"]
    while history is not None:
        if "pretraining" in history:
            return _RECIPES["pretrained"]
        history = history.get("initial")
    return _RECIPES["from-nothing"]


@dataclass(frozen=True)
class PolicyChanges:
    """Fields of `PolicyConfig` that a training run changes; None keeps the preset's or the checkpoint's."""

    window: Annotated[int | None, Option("Frames per window.", panel="Policy", min=1)] = None
    frame_stride: Annotated[int | None, Option("Control steps between two frames (jump-step).", min=1)] = None
    chunk_size: Annotated[int | None, Option("Actions per inference; at least the frame stride.", min=1)] = None
    time_keeping: Annotated[Literal["window", "carry"] | None, Option("window or carry.")] = None
    head: Annotated[Literal["lstm", "gpt", "mlp"] | None, Option("lstm, gpt or mlp, about as large as the preset's.")] = None
    fusion: Annotated[
        Literal["post", "pre", "two_way"] | None,
        Option("post (join the cameras' latents), pre (join their patches) or two_way (each alone)."),
    ] = None
    pooling: Annotated[Literal["max", "average"] | None, Option("max or average, over the tokens.")] = None
    media_frames: Annotated[
        int | None, Option("Frames that the text reads; above 1 with --head mlp: MLP with history.", min=1)
    ] = None
    proprioception: Annotated[bool | None, Option("Also read the arm's pose and the gripper's last command.")] = None


class RunConfig(_Config):
    policy: PolicyConfig  # what is trained; window, frame_stride and chunk_size also say how the data is cut
    # checkpoint whose weights and tokenizer to start from; None initialises weights from `seed`
    initial_checkpoint: Path | None = None
    data: Annotated[Path, Option("Demonstrations in the CALVIN format.")]
    # gets checkpoint/, state/, tensorboard/ and metrics.jsonl
    output: Annotated[Path, Option("Folder of the run; the result is its checkpoint/ folder.")]
    steps: Annotated[int | None, Option("Stop after this many steps.", panel="Length", min=1)] = Field(None, ge=1)
    minutes: Annotated[float | None, Option("Stop after this much training time, resumed parts included.")] = Field(
        None, gt=0
    )
    save_every: Annotated[NotNegative, Option("Steps between two states to resume from; 0 for the end only.", min=0)] = 200
    resume: Annotated[bool, Option("Go on from the newest state in --output, or start over.")] = True
    keep_states: AtLeastOne = 2
    batch_size: int
    learning_rate: float
    warmup_steps: NotNegative
    gradient_clip: Positive = 1.0
    seed: Annotated[NotNegative, Option("Decides weights, order of the data, shifts, questions and dropout.", min=0)] = 0
    instructions: Annotated[
        InstructionSource,
        Option(
            "data (the demonstrations' own) or grammar (sampled at every step, thousands of sentences per task).",
            panel="Data",
        ),
    ] = "data"
    # the policy's decoder must say the same; None keeps the initial checkpoint's tokenizer
    vocab_size: Annotated[
        int | None,
        Option(
            "Train a tokenizer of at most this many entries anew, and the word embedding with it: for a checkpoint whose "
            "texts nobody trained (pretrain --language-weight 0), or whose tokenizer spells the grammar's words in pieces."
        ),
    ] = Field(None, ge=512)
    light: NotNegativeFloat = 0.0  # see `rfedge.train.pretraining.pointing`
    validation_fraction: float
    validate_every: NotNegative = 500  # steps between two measurements; 0 for the end only
    cache: Annotated[Path | None, Option("Folder of the frame cache; default beside the data.")] = None
    num_threads: Annotated[int | None, Option("CPU threads of PyTorch.", panel="Machine", min=1)] = Field(None, ge=1)
    mixed_precision: MixedPrecision = "no"  # weights, moments and states stay float32

    # Fields that may change when a run is resumed.
    free: ClassVar[frozenset[str]] = frozenset({
        "data", "output", "steps", "minutes", "validate_every", "save_every", "keep_states", "resume", "num_threads",
        "cache",
    })  # fmt: skip

    def resume_key(self) -> dict[str, Any]:
        """Return the fields that must not change when a run is resumed, as JSON values."""
        return self.model_dump(mode="json", exclude=set(self.free))


class TrainConfig(RunConfig):
    """One training run, until the first of steps, epochs and minutes is reached."""

    epochs: Annotated[
        float | None, Field(gt=0), Option("Stop after this many epochs; default 5 if nothing else stops.", panel="Length")
    ] = None
    batch_size: Annotated[
        AtLeastOne,
        Option("Windows per step, over all processes and gradient accumulation steps.", panel="Optimization", min=1),
    ] = 8
    accumulate: Annotated[AtLeastOne, Option("Gradient accumulation steps, to save memory.", min=1)] = 1
    learning_rate: Annotated[Positive, Option("Peak learning rate; default from the preset's recipe.", optional=True)]
    head_rate: Annotated[
        Positive, Option("Factor of the learning rate for the head; default from the recipe.", optional=True)
    ]
    schedule: ScheduleKind
    weight_decay: NotNegativeFloat = 0.1
    optimizer: Annotated[OptimizerKind, Option("adamw, or adamw-8bit, with moments of 8 bits (bitsandbytes).")] = "adamw"
    trainable: Annotated[
        TrainableScheme,
        Option(
            "Trainable parameters: paper (all but vision and decoder), freeze-emb (as paper, without the word embedding), "
            "freeze-vision (all but vision), full, or head (the policy head alone); default from the preset's recipe.",
            optional=True,
        ),
    ]
    vl_pretraining: Annotated[
        bool, Option("Keep the checkpoint's resampler and cross-attention, or re-initialise them from the seed.")
    ] = True
    # the features are computed once, not augmented
    head_first_steps: Annotated[
        int, Option("Steps in which only the head is trained, on cached features.", min=0, optional=True)
    ] = Field(ge=0)
    head_first_batch_size: AtLeastOne = 32  # windows per step in these
    loss: Annotated[LossKind, Option("huber or mse.", panel="Losses")] = "huber"
    gripper_weight: Annotated[float, Option("Factor of the gripper's cross-entropy.", optional=True)] = Field(ge=0)
    caption_weight: Annotated[NotNegativeFloat, Option("Factor of the captions' language loss.")] = 0.005
    vqa_weight: Annotated[NotNegativeFloat, Option("Factor of the answers' language loss.")] = 0.5
    # see `rfedge.train.pretraining.pointing`
    pointing_weight: Annotated[
        NotNegativeFloat,
        Option(
            "Factor of the loss of queries that point at things, with --trainable full; default 0.", min=0, optional=True
        ),
    ] = 0.0
    pointing_batch_size: AtLeastOne = 32  # frames per step that its queries point at
    # see `rfedge.train.losses`
    task_weight: Annotated[
        NotNegativeFloat,
        Option("Factor of the loss of a probe that reads the task off the feature; default 0.", min=0, optional=True),
    ] = 0.0
    vision_tokens: Annotated[
        bool,
        Option("With a frozen vision tower: compute its tokens of each frame once, and keep them on disk.", panel="Data"),
    ] = False
    image_text: Annotated[
        tuple[Path, ...],
        Option(
            "JSONL file of image-text pairs to co-train on (image and caption, or image, question and answer); "
            "may be given several times."
        ),
    ] = ()
    image_text_batch_size: Annotated[int, Option("Pairs of each kind per step.", min=1)] = Field(20, ge=1)
    # one random shift per window keeps its motion; per frame is what the released code does
    augmentation: Annotated[
        ShiftKind, Option("Random shift per window, per frame, or none; default from the recipe.", optional=True)
    ]
    light: Annotated[
        float,
        Option("Deviation of random gains of the pictures that are pointed at; default 0.", min=0, optional=True),
    ] = Field(0.0, ge=0)
    validation_fraction: Annotated[
        float, Field(ge=0, lt=1), Option("Share of the segments, and of the pairs' images, held out.")
    ] = 0.1
    data_share: Annotated[
        float, Field(gt=0, le=1), Option("Share of the other segments to train on, such as 0.1 to see what data is worth.")
    ] = 1.0
    validation_windows: AtLeastOne = 64  # held-out windows, and pairs of each kind, measured, evenly spread
    # "cpu", "cuda" or "cuda:N"; of several processes each takes the GPU of its local rank
    device: Annotated[str, Option("cpu or cuda.", panel="Machine")] = "cpu"
    parallel: Annotated[
        ParallelKind,
        Option("Among processes that torchrun started: ddp (each holds the policy) or fsdp (each a part of it)."),
    ] = "ddp"
    mixed_precision: Annotated[
        MixedPrecision,
        Option("no, bf16, or on a GPU fp16: what MatMuls are computed in; weights stay float32."),
    ] = "no"

    free: ClassVar[frozenset[str]] = RunConfig.free | {
        "epochs", "validation_windows", "device", "image_text", "accumulate", "parallel",
    }  # fmt: skip


def change_policy(policy: PolicyConfig, **changes: object) -> PolicyConfig:
    """Return `policy` with the changes that are not None; `head` may be a kind ("gpt"), of the present size."""
    changed = {name: value for name, value in changes.items() if value is not None}
    if isinstance(kind := changed.get("head"), str):
        changed["head"] = head_of_kind(kind, policy.head)
    stride = changed.get("frame_stride")
    if isinstance(stride, int) and "chunk_size" not in changed:
        changed["chunk_size"] = max(stride, policy.chunk_size)  # or the robot has no action between two frames
    try:
        return PolicyConfig.model_validate({**policy.model_dump(), **changed})
    except ValidationError as error:
        raise _config_error("policy options", error) from None


def with_vocabulary(policy: PolicyConfig, vocab_size: int | None) -> PolicyConfig:
    """Return `policy` with a word embedding of so many rows, or `policy` itself without a number."""
    if vocab_size is None:
        return policy
    return policy.model_copy(update={"decoder": policy.decoder.model_copy(update={"vocab_size": vocab_size})})


def train_config(name: str, *, data: Path, output: Path, policy_changes: dict[str, Any], **options: Any) -> TrainConfig:
    """Fill a TrainConfig from a preset's recipe; options that are None take the recipe's or the class's default.

    `name` is a preset, or a checkpoint folder to start from; what that has no weights for is sampled from the seed.
    Raises ConfigError where a name is unknown, a value out of range, or options contradict each other.
    """
    initial = Path(name) if name not in preset_names() and Path(name).is_dir() else None
    history = None
    if initial is None:
        base = preset(name)
    else:
        from rfedge.model import load_checkpoint

        loaded = load_checkpoint(initial)
        base, history = loaded.config, loaded.metadata
    # Rate and camera geometry are those of the demonstrations, whatever the preset says.
    recorded = recorded_conventions(data)
    changes = {"control_hz": recorded.control_hz, "resize": recorded.resize, **policy_changes}
    policy = with_vocabulary(change_policy(base, **changes), options.get("vocab_size"))
    recipe = recipe_for(policy.name, history)
    given = {key: value for key, value in options.items() if value is not None}
    batch_size = given.get("batch_size", TrainConfig.model_fields["batch_size"].default)
    filled: dict[str, Any] = {
        **recipe.model_dump(exclude={"reference_batch_size"}),
        "learning_rate": recipe.learning_rate * batch_size / recipe.reference_batch_size,
        "head_first_steps": recipe.head_first_steps if initial is None else 0,
        **given,
    }
    if not {"steps", "epochs", "minutes"} & filled.keys():
        filled["epochs"] = 5.0  # as in the paper
    try:
        config = TrainConfig(policy=policy, initial_checkpoint=initial, data=data, output=output, **filled)
    except ValidationError as error:
        raise _config_error("training options", error) from None
    _check_paradigm(config)
    _check_scale(config)
    return config


def _check_paradigm(config: TrainConfig) -> None:
    """Raise ConfigError where an option would do nothing, or could not be done."""
    if not config.vl_pretraining and config.initial_checkpoint is None:
        got = f"preset {config.policy.name}, all of it random"
        expected = "a checkpoint with pre-trained resampler and cross-attention"
        remedy = "Give it as --config, or leave the option out."
        raise ConfigError("no-vl-pretraining", got=got, expected=expected, remedy=remedy)
    if config.image_text and config.trainable == "head":
        got = "trainable head, which image-text pairs teach nothing"
        expected = "trainable paper, freeze-emb, freeze-vision or full"
        remedy = "Choose one, or leave the pairs out."
        raise ConfigError("image-text", got=got, expected=expected, remedy=remedy)
    if config.vision_tokens and (config.trainable == "full" or config.augmentation != "none"):
        got = f"trainable {config.trainable}, augmentation {config.augmentation}"
        expected = "a frozen vision tower that sees every frame as it is"
        remedy = "Pass --trainable freeze-vision --augmentation none, or leave the option out."
        raise ConfigError("vision-tokens", got=got, expected=expected, remedy=remedy)
    if config.pointing_weight and config.trainable != "full":
        expected = "trainable full: pointing teaches the vision tower"
        remedy = "Pass --trainable full, or leave the option out."
        raise ConfigError("pointing-weight", got=f"trainable {config.trainable}", expected=expected, remedy=remedy)
    decoder = config.policy.decoder
    if config.image_text and not isinstance(decoder, MPTConfig) and not decoder.output_projection:
        got = f"a {decoder.kind} decoder without its output projection"
        expected = "a checkpoint that holds it, or an MPT decoder, whose output is its embedding"
        remedy = "Import the original weights again with --keep-output-projection."
        raise ConfigError("image-text", got=got, expected=expected, remedy=remedy)


def _check_scale(config: TrainConfig) -> None:
    """Raise ConfigError where two options of scale do not go together."""
    if config.mixed_precision == "fp16" and config.device == "cpu":
        remedy = "fp16 is for GPUs: CPUs have no fast MatMuls in it. Pass --mixed-precision bf16, or --device cuda."
        raise ConfigError("mixed-precision", got="fp16 on the CPU", expected="bf16 or no there", remedy=remedy)
    if config.optimizer == "adamw-8bit" and config.parallel == "fsdp":
        expected = "adamw-8bit with ddp, or adamw with fsdp"
        remedy = "8-bit moments share a scale in blocks that FSDP2 would cut. Choose one of the two."
        raise ConfigError("optimizer", got="adamw-8bit with parallel fsdp", expected=expected, remedy=remedy)


def _config_error(subject: str, error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or subject
    # A validator's own sentence already says what was expected; pydantic's built-in ones follow the same order.
    expected = first["msg"].removeprefix("Value error, ")
    got = repr(first["input"]) if first["loc"] else "options that contradict each other"
    remedy = "See `rfedge train --help`."
    return ConfigError(name, got=got, expected=expected[0].lower() + expected[1:], remedy=remedy)
