"""Typed configurations of the RoboFlamingo family and the named presets built from them.

The classes describe every member of the family; a preset is only a set of numbers. Sources: RoboFlamingo, section 4
and Table 2; the released 3B checkpoints' key shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from rfedge.errors import ConfigError, did_you_mean, explain

__all__ = [
    "PRECISIONS",
    "DecoderConfig",
    "GPTNeoXConfig",
    "HeadConfig",
    "LlamaConfig",
    "MPTConfig",
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
    feature: Literal["last_block_input", "last_block", "final_norm"] = "final_norm"

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


def _decoder_kind(value: Any) -> str | None:
    # A configuration may leave the kind out; MosaicGPT was the only one at first.
    return value.get("kind", "mosaic_gpt") if isinstance(value, dict) else getattr(value, "kind", None)


DecoderConfig = Annotated[
    Annotated[MPTConfig, Tag("mosaic_gpt")]
    | Annotated[MPTConfig, Tag("mpt")]
    | Annotated[GPTNeoXConfig, Tag("gpt_neox")]
    | Annotated[LlamaConfig, Tag("llama")],
    Discriminator(_decoder_kind),
]


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
        pooling: over the tokens of the decoder, to one feature.
        fusion: `post` resamples each camera and joins the latents; `pre` joins the patch tokens before one resampler.
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
    pooling: Literal["max", "average"] = "max"
    fusion: Literal["post", "pre"] = "post"
    window: int = Field(12, ge=1)
    time_keeping: Literal["window", "carry"] = "window"
    chunk_size: int = Field(1, ge=1, le=64)
    frame_stride: int = Field(1, ge=1, le=64)
    control_hz: float = 30.0

    @property
    def feature_size(self) -> int:
        return self.decoder.width

    @model_validator(mode="after")
    def _one_resampler_reads_joined_tokens(self) -> PolicyConfig:
        if self.fusion == "pre" and self.resampler.per_camera:
            raise ValueError("resampler.per_camera: got true, expected false with fusion 'pre', which has one resampler")
        return self

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
        decoder=MPTConfig(
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
        decoder=MPTConfig(
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


def _released(name: str, decoder: Callable[[], DecoderConfig]) -> PolicyConfig:
    """Return a member of Table 2: they differ in the language model alone."""
    return PolicyConfig(
        name=name,
        vision=VisionConfig(image_size=224, patch_size=14, width=1024, layers=24, heads=16),
        resampler=ResamplerConfig(layers=6, latents=64),
        decoder=decoder(),
        head=HeadConfig(hidden_size=1024),
    )


def _mpt_1b() -> MPTConfig:
    return MPTConfig(width=2048, layers=24, heads=16, vocab_size=50280, text_length=32, feature="last_block_input")


def _redpajama_3b() -> GPTNeoXConfig:
    return GPTNeoXConfig(
        kind="gpt_neox",
        width=2560,
        layers=32,
        heads=32,
        mlp_width=10240,
        vocab_size=50280,
        text_length=32,
        cross_attention_every=2,
    )


def _llama_7b() -> LlamaConfig:
    return LlamaConfig(
        kind="llama",
        width=4096,
        layers=32,
        heads=32,
        key_value_heads=32,
        mlp_width=11008,
        vocab_size=32003,
        text_length=32,
        cross_attention_every=4,
    )


def _mpt_7b() -> MPTConfig:
    return MPTConfig(
        kind="mpt",
        qk_norm=False,
        width=4096,
        layers=32,
        heads=32,
        vocab_size=50280,
        text_length=32,
        cross_attention_every=4,
    )


# IFT: the same numbers around a language model that was also tuned on instructions.
_RELEASED: Final[dict[str, Callable[[], DecoderConfig]]] = {
    "M-3B": _mpt_1b,
    "M-3B-IFT": _mpt_1b,
    "G-4B": _redpajama_3b,
    "G-4B-IFT": _redpajama_3b,
    "L-9B": _llama_7b,
    "M-9B": _mpt_7b,
}
_PRESETS: Final[dict[str, Callable[[], PolicyConfig]]] = {
    "tiny": _tiny,
    "playtable-small": _playtable_small,
    **{name: partial(_released, name, decoder) for name, decoder in _RELEASED.items()},
}


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
