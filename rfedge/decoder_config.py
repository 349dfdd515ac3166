"""Typed configurations of the language decoders: MPT, GPT-NeoX and LLaMA with gated cross-attention between the blocks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

__all__ = ["DecoderConfig", "Feature", "GPTNeoXConfig", "LlamaConfig", "MPTConfig"]

Feature = Literal["last_block_input", "last_block", "final_norm"]


class _DecoderConfig(BaseModel):
    """Language decoder with gated cross-attention before every `cross_attention_every`-th block."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
