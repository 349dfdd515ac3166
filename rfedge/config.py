"""Typed configurations of the RoboFlamingo family and the named presets built from them.

The classes describe every member of the family; a preset is only a set of numbers. Sources: RoboFlamingo, section 4
and Table 2; the released 3B checkpoints' key shapes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from rfedge.errors import one_of
from rfedge.robot.camera import DEFAULT_RESIZE, Resize
from rfedge.robot.conventions import Conventions

__all__ = [
    "PRECISIONS",
    "DecoderConfig",
    "Feature",
    "GPTHeadConfig",
    "GPTNeoXConfig",
    "HeadConfig",
    "LSTMHeadConfig",
    "LlamaConfig",
    "MLPHeadConfig",
    "MPTConfig",
    "PolicyConfig",
    "Precision",
    "ResamplerConfig",
    "VisionConfig",
    "check_precision",
    "head_of_kind",
    "preset",
    "preset_names",
]

Feature = Literal["last_block_input", "last_block", "final_norm"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-weight", "int4-weight", "mixed"]
# What `rfedge export` can make.
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VisionConfig(_Config):
    """CLIP vision transformer; its output is the patch tokens before the last LayerNorm, without the class token.

    `stem_widths` gives it a stem: a convolution over small patches, ReLU, and one of stride 2 for each further width, the
    last of `width`. From nothing and on few images such a tower learns sooner where things are. Source: Xiao et al., Early
    Convolutions Help Transformers See Better, NeurIPS 2021.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_ratio: int = 4
    stem_widths: tuple[int, ...] = ()

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @model_validator(mode="after")
    def _divides(self) -> VisionConfig:
        if self.image_size % self.patch_size or self.width % self.heads:
            raise ValueError("image_size must be a multiple of patch_size and width of heads")
        if self.patch_size % 2 ** len(self.stem_widths):
            raise ValueError(f"stem_widths: got {len(self.stem_widths)}, expected so few that each can halve patch_size")
        return self


class ResamplerConfig(_Config):
    """Perceiver resampler: `latents` learned queries read the patch tokens of one camera.

    `per_camera` gives the gripper camera a resampler of its own; released models share one.
    """

    layers: int
    latents: int
    heads: int = 8
    head_size: int = 64
    mlp_ratio: int = 4
    per_camera: bool = False


class _DecoderConfig(_Config):
    """Language decoder with gated cross-attention before every `cross_attention_every`-th block."""

    width: int
    layers: int
    heads: int
    vocab_size: int
    text_length: int = Field(description="tokens of the padded instruction, special tokens included")
    mlp_ratio: int = 4
    cross_attention_every: int = Field(1, ge=1)
    cross_attention_heads: int = 8
    cross_attention_head_size: int = 64
    # tanh(gate) scales what each cross-attention adds. 0 protects a pre-trained decoder; from nothing it starves vision.
    gate_init: float = 0.0
    # MPT-1B reports the INPUT of its last block as its last hidden state, so that block never reaches the action.
    feature: Feature = "final_norm"
    # What stands before `<image>` reads no camera: LLaMA's tokenizer starts every text with `<s>`.
    tokens_before_image: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> _DecoderConfig:
        if self.width % self.heads:
            raise ValueError(f"width: got {self.width}, expected a multiple of heads ({self.heads})")
        return self


class MPTConfig(_DecoderConfig):
    """MPT: ALiBi, no biases, output tied to the embedding. MosaicGPT (MPT-1B) also normalises whole q and k vectors."""

    kind: Literal["mosaic_gpt", "mpt"] = "mosaic_gpt"
    qk_norm: bool = True
    alibi_bias_max: float = 8.0

    @model_validator(mode="after")
    def _only_mosaic_gpt_norms_q_and_k(self) -> MPTConfig:
        if self.kind == "mpt" and self.qk_norm:
            raise ValueError("qk_norm: got true, expected false with kind 'mpt': only 'mosaic_gpt' holds these norms")
        return self


class _RotaryConfig(_DecoderConfig):
    # The logits' own matrix. Only co-training on image-text pairs reads it, so a policy holds it only when asked to;
    # MPT has none, its logits are MatMuls with the embedding.
    output_projection: bool = False
    rotary_base: float = Field(10000.0, gt=0)

    @property
    def rotary_size(self) -> int:
        """Leading elements of every q and k head that are turned."""
        return self.width // self.heads

    @model_validator(mode="after")
    def _turns_pairs(self) -> _RotaryConfig:
        if self.rotary_size % 2 or self.rotary_size < 2:
            raise ValueError(f"rotary positions turn pairs: got {self.rotary_size} elements a head, expected an even number")
        return self


class GPTNeoXConfig(_RotaryConfig):
    """GPT-NeoX: rotary positions, biases everywhere; RedPajama-3B adds attention before its MLP reads (sequential)."""

    kind: Literal["gpt_neox"]
    mlp_width: int
    parallel_residual: bool = False
    rotary_fraction: float = Field(1.0, gt=0, le=1)
    norm_eps: float = 1e-5

    @property
    def rotary_size(self) -> int:
        """Leading elements of every q and k head that are turned."""
        return int(self.width // self.heads * self.rotary_fraction)


class LlamaConfig(_RotaryConfig):
    """LLaMA: rotary positions, RMSNorm, gated SiLU MLP, no biases; `key_value_heads` below `heads` share k and v."""

    kind: Literal["llama"]
    mlp_width: int
    key_value_heads: int
    norm_eps: float = 1e-6

    @model_validator(mode="after")
    def _groups_divide(self) -> LlamaConfig:
        if self.heads % self.key_value_heads:
            raise ValueError(f"heads: got {self.heads}, expected a multiple of key_value_heads ({self.key_value_heads})")
        return self


def _kind_or(default: str) -> Discriminator:
    # A configuration may leave the kind out: MosaicGPT and the LSTM were the only ones at first.
    return Discriminator(
        lambda value: value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", None)
    )


DecoderConfig = Annotated[
    Annotated[MPTConfig, Tag("mosaic_gpt")]
    | Annotated[MPTConfig, Tag("mpt")]
    | Annotated[GPTNeoXConfig, Tag("gpt_neox")]
    | Annotated[LlamaConfig, Tag("llama")],
    _kind_or("mosaic_gpt"),
]


class _HeadConfig(_Config):
    # Hidden layers of the two MLPs that end every head: one for the pose (tanh), one for the gripper (sigmoid).
    mlp_sizes: tuple[int, ...] = (1024, 512, 256)
    dropout: float = 0.1


class LSTMHeadConfig(_HeadConfig):
    """Recurrent head, the default: its state carries what was seen before."""

    kind: Literal["lstm"] = "lstm"
    hidden_size: int
    layers: int = 4


class GPTHeadConfig(_HeadConfig):
    """Causal transformer over the features of the last `window` frames, with learned positions."""

    kind: Literal["gpt"]
    width: int = 768
    layers: int = 8
    heads: int = 8

    @model_validator(mode="after")
    def _heads_divide(self) -> GPTHeadConfig:
        if self.width % self.heads:
            raise ValueError(f"width: got {self.width}, expected a multiple of heads ({self.heads})")
        return self


class MLPHeadConfig(_HeadConfig):
    """MLP over the present feature alone; with `PolicyConfig.media_frames` above 1 that feature knows the past."""

    kind: Literal["mlp"]
    hidden_size: int = 1024


HeadConfig = Annotated[
    Annotated[LSTMHeadConfig, Tag("lstm")] | Annotated[GPTHeadConfig, Tag("gpt")] | Annotated[MLPHeadConfig, Tag("mlp")],
    _kind_or("lstm"),
]


def head_of_kind(kind: str, like: HeadConfig) -> HeadConfig:
    """Return a head of another kind about the size of the LSTM head `like`.

    The proportions are those of the original's defaults: 768 wide and 8 deep beside an LSTM of 4 x 1024.

    Raises:
        ConfigError: no head has this kind.
    """
    known = ("lstm", "gpt", "mlp") if isinstance(like, LSTMHeadConfig) else (like.kind,)
    one_of(known, kind, "head")
    if kind == like.kind or not isinstance(like, LSTMHeadConfig):
        return like
    if kind == "mlp":
        return MLPHeadConfig(kind="mlp", hidden_size=like.hidden_size, mlp_sizes=like.mlp_sizes, dropout=like.dropout)
    width = like.hidden_size * 3 // 4
    heads = 8 if width % 8 == 0 else 1
    return GPTHeadConfig(
        kind="gpt", width=width, layers=2 * like.layers, heads=heads, mlp_sizes=like.mlp_sizes, dropout=like.dropout
    )


class PolicyConfig(_Config):
    """One policy: its four parts, and how it keeps time.

    Attributes:
        pooling: over the tokens of the decoder, to one feature.
        fusion: `post` resamples each camera and joins the latents; `pre` joins the patch tokens before one resampler;
            `two_way` lets the text read each camera alone and joins the two features.
        media_frames: frames whose latents the text reads, the present one included. Above 1 the memory of a policy is in
            its backbone ("MLP with history", RoboFlamingo 5.4.1); every frame is still seen by the cameras' part once.
        proprioception: add the arm's pose and the gripper's last command to the feature.
        window: frames in a training window, and the features replayed in `window` time-keeping.
        time_keeping: `window` replays the head from nothing over the last `window` features; `carry` keeps an LSTM's
            state. It says nothing to an MLP.
        frame_stride: control steps between the frames the head was trained on.
        control_hz: rate of one action, that of the demonstrations.
        resize: how pictures of the demonstrations' cameras were brought to the policy's size, see `rfedge.robot.camera`.
    """

    name: str
    vision: VisionConfig
    resampler: ResamplerConfig
    decoder: DecoderConfig
    head: HeadConfig
    pooling: Literal["max", "average"] = "max"
    fusion: Literal["post", "pre", "two_way"] = "post"
    media_frames: int = Field(1, ge=1, le=64)
    proprioception: bool = False
    window: int = Field(12, ge=1)
    time_keeping: Literal["window", "carry"] = "window"
    chunk_size: int = Field(1, ge=1, le=64)
    frame_stride: int = Field(1, ge=1, le=64)
    control_hz: float = Field(30.0, gt=0.0, le=1000.0)
    resize: Resize = DEFAULT_RESIZE

    @property
    def conventions(self) -> Conventions:
        return Conventions(self.control_hz, self.resize)

    @property
    def feature_size(self) -> int:
        """Width of what the backbone hands to the head."""
        return self.decoder.width * (2 if self.fusion == "two_way" else 1)

    @property
    def lstm_rows(self) -> int:
        """LSTMs that run side by side (`rfedge.recurrence`): one that carries, or one begun at each frame of the window."""
        return self.window if self.head.kind == "lstm" and self.time_keeping == "window" else 1

    @property
    def latents_per_frame(self) -> int:
        """Latents of one frame, both cameras."""
        return self.resampler.latents * (1 if self.fusion == "pre" else 2)

    @model_validator(mode="after")
    def _parts_fit(self) -> PolicyConfig:
        if self.fusion == "pre" and self.resampler.per_camera:
            raise ValueError("resampler.per_camera: got true, expected false with fusion 'pre', which has one resampler")
        if self.media_frames > 1 and self.fusion == "two_way":
            raise ValueError("fusion: got 'two_way', expected 'post' or 'pre' with media_frames above 1")
        if self.media_frames > self.window:
            raise ValueError(f"media_frames: got {self.media_frames}, expected at most the window ({self.window})")
        if self.head.kind == "gpt" and self.time_keeping == "carry":
            raise ValueError("time_keeping: got 'carry', expected 'window': a GPT head has no state to carry")
        if self.frame_stride > self.chunk_size:
            raise ValueError(
                f"frame_stride: got {self.frame_stride}, expected at most chunk_size ({self.chunk_size}), "
                "or the robot has no action between two frames"
            )
        return self


# The released ones are those of Table 2 around MPT-1B (M-3B), RedPajama-3B (G-4B), LLaMA-7B (L-9B) and MPT-7B (M-9B).
# IFT: the same numbers around a language model that was also tuned on instructions.
_PRESETS: Final[dict[str, dict[str, Any]]] = json.loads(Path(__file__).with_name("presets.json").read_text())


def preset_names() -> list[str]:
    return list(_PRESETS)


def preset(name: str) -> PolicyConfig:
    """Return the configuration called `name`; ConfigError, with the nearest name, where there is none."""
    one_of(_PRESETS, name, "preset")
    return PolicyConfig.model_validate({"name": name, **_PRESETS[name]})


def check_precision(name: str) -> Precision:
    """Return `name` as a Precision; ConfigError, with the nearest one, where the exporter does not know it."""
    return one_of(PRECISIONS, name, "precision")
