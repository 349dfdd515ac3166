"""Typed configurations of the RoboFlamingo family and the named presets built from them.

The classes describe every member of the family; a preset is only a set of numbers. Sources: RoboFlamingo, section 4
and Table 2; the released 3B checkpoints' key shapes.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rfedge.errors import ConfigError, did_you_mean, explain

__all__ = [
    "PRECISIONS",
    "DecoderConfig",
    "HeadConfig",
    "PolicyConfig",
    "Precision",
    "ResamplerConfig",
    "VisionConfig",
    "check_precision",
    "preset",
    "preset_names",
]

Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-weight", "int4-weight", "mixed"]
# What `rfedge export` can make today; the other names of `Precision` are reserved.
PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "int8")


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VisionConfig(_Config):
    """CLIP vision transformer; its output is the patch tokens before the last LayerNorm, without the class token."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_ratio: int = 4

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @model_validator(mode="after")
    def _divides(self) -> VisionConfig:
        if self.image_size % self.patch_size or self.width % self.heads:
            raise ValueError("image_size must be a multiple of patch_size and width of heads")
        return self


class ResamplerConfig(_Config):
    """Perceiver resampler: `latents` learned queries read the patch tokens of one camera."""

    layers: int
    latents: int
    heads: int = 8
    head_size: int = 64
    mlp_ratio: int = 4


class DecoderConfig(_Config):
    """Language decoder with gated cross-attention before every `cross_attention_every`-th block."""

    kind: Literal["mosaic_gpt"] = "mosaic_gpt"
    width: int
    layers: int
    heads: int
    vocab_size: int
    text_length: int = Field(description="tokens of the padded instruction, special tokens included")
    mlp_ratio: int = 4
    qk_norm: bool = True
    alibi_bias_max: float = 8.0
    cross_attention_every: int = 1
    cross_attention_heads: int = 8
    cross_attention_head_size: int = 64
    # tanh(gate) scales what each cross-attention adds. 0 protects a pre-trained decoder; from nothing it starves vision.
    gate_init: float = 0.0
    # MPT-1B reports the INPUT of its last block as its last hidden state, so that block never reaches the action.
    feature: Literal["last_block_input", "final_norm"] = "final_norm"


class HeadConfig(_Config):
    """Recurrent policy head: LSTM, then one MLP for the pose (tanh) and one for the gripper (sigmoid)."""

    kind: Literal["lstm"] = "lstm"
    hidden_size: int
    layers: int = 4
    mlp_sizes: tuple[int, ...] = (1024, 512, 256)
    dropout: float = 0.1


class PolicyConfig(_Config):
    """One policy: its four parts, and how it keeps time.

    Attributes:
        window: frames in a training window, and the features replayed in `window` time-keeping.
        time_keeping: `window` replays the LSTM from zero over the last `window` features; `carry` keeps its state.
        chunk_size: actions predicted per inference.
        frame_stride: control steps between the frames the LSTM was trained on.
        control_hz: rate of one action.
    """

    name: str
    vision: VisionConfig
    resampler: ResamplerConfig
    decoder: DecoderConfig
    head: HeadConfig
    pooling: Literal["max"] = "max"
    window: int = Field(12, ge=1)
    time_keeping: Literal["window", "carry"] = "window"
    chunk_size: int = Field(1, ge=1, le=64)
    frame_stride: int = Field(1, ge=1, le=64)
    control_hz: float = 30.0

    @property
    def feature_size(self) -> int:
        return self.decoder.width

    @model_validator(mode="after")
    def _jump_step_fills_its_gap(self) -> PolicyConfig:
        if self.frame_stride > self.chunk_size:
            raise ValueError(
                f"frame_stride: got {self.frame_stride}, expected at most chunk_size ({self.chunk_size}), "
                "or the robot has no action between two frames"
            )
        return self


def _tiny() -> PolicyConfig:
    return PolicyConfig(
        name="tiny",
        vision=VisionConfig(image_size=32, patch_size=8, width=64, layers=2, heads=2),
        resampler=ResamplerConfig(layers=1, latents=8, heads=2, head_size=32),
        decoder=DecoderConfig(
            width=64,
            layers=2,
            heads=2,
            vocab_size=1024,
            text_length=16,
            cross_attention_heads=2,
            cross_attention_head_size=32,
            gate_init=1.0,
        ),
        head=HeadConfig(hidden_size=48, mlp_sizes=(48, 32)),
    )


def _playtable_small() -> PolicyConfig:
    return PolicyConfig(
        name="playtable-small",
        vision=VisionConfig(image_size=128, patch_size=16, width=256, layers=6, heads=4),
        resampler=ResamplerConfig(layers=2, latents=16, heads=4),
        decoder=DecoderConfig(
            width=256,
            layers=4,
            heads=4,
            vocab_size=1024,
            text_length=24,
            cross_attention_heads=4,
            cross_attention_head_size=64,
            gate_init=1.0,
        ),
        head=HeadConfig(hidden_size=256, mlp_sizes=(256, 128, 64)),
    )


def _m_3b() -> PolicyConfig:
    return PolicyConfig(
        name="M-3B",
        vision=VisionConfig(image_size=224, patch_size=14, width=1024, layers=24, heads=16),
        resampler=ResamplerConfig(layers=6, latents=64),
        decoder=DecoderConfig(width=2048, layers=24, heads=16, vocab_size=50280, text_length=32, feature="last_block_input"),
        head=HeadConfig(hidden_size=1024),
    )


_PRESETS: Final = {"tiny": _tiny, "playtable-small": _playtable_small, "M-3B": _m_3b}


def preset_names() -> list[str]:
    """Names accepted by `preset`."""
    return list(_PRESETS)


def preset(name: str) -> PolicyConfig:
    """Return the configuration called `name`.

    Raises:
        ConfigError: no preset has this name; the text names the nearest one.
    """
    if name not in _PRESETS:
        raise ConfigError(
            explain("preset", got=repr(name), expected=did_you_mean(name, _PRESETS), remedy="Choose one of these names.")
        )
    return _PRESETS[name]()


def check_precision(name: str) -> Precision:
    """Return `name` as a Precision.

    Raises:
        ConfigError: the exporter does not know it; the text names the nearest one.
    """
    for precision in PRECISIONS:
        if precision == name:
            return precision
    raise ConfigError(
        explain("precision", got=repr(name), expected=did_you_mean(name, PRECISIONS), remedy="Choose one of these names.")
    )
