"""Count the MatMuls of a policy from its configuration alone, so that a full-size model can be assessed without a file.

Follows the graphs that the exporter writes, MatMul by MatMul (a test compares the two): both cameras in one batch,
text padded to its static length, the first resampler layer's queries folded into a constant.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Final

from rfedge.config import GPTNeoXConfig, LlamaConfig, LSTMHeadConfig, MPTConfig, PolicyConfig
from rfedge.errors import one_of
from rfedge.messages import GRIPPER_IMAGE_SHAPE, POSE_SIZE, STATIC_IMAGE_SHAPE
from rfedge.runtimes.roofline.graph_work import head_steps
from rfedge.runtimes.roofline.work import Arithmetic, MatMul, PolicyWork

FLOAT_BYTES: Final = 4
# Norms, activations, additions and moves beside each MatMul, as in the exporter's graphs (315 operators of 86 MatMuls).
_OPERATORS_PER_MATMUL: Final = 4


@dataclass(frozen=True, slots=True)
class _Form:
    """How a MatMul with weights is stored and computed; `scale_bytes` are added for each row of its output channels."""

    arithmetic: Arithmetic
    label: str
    weight_bits: float
    input_bytes: int
    output_bytes: int
    scale_bytes: int = 0


_FLOAT: Final = _Form("fp32", "fp32", 32, 4, 4)
# int4: blocks of 32 weights share a scale of 16 bits, so that one weight takes 4.5 bits.
_FORMS: Final = {
    "fp32": _FLOAT,
    "fp16": _Form("fp16", "fp16", 16, 2, 2),
    "bf16": _Form("bf16", "bf16", 16, 2, 2),
    "int8": _Form("int8", "int8", 8, 1, 4, scale_bytes=4),
    "int8-weight": _Form("fp32", "int8-weight", 8, 4, 4, scale_bytes=4),
    "int4-weight": _Form("fp32", "int4-weight", 4.5, 4, 4),
}


def analytic_work(config: PolicyConfig, precision: str = "fp32", *, text_tokens: int | None = None) -> PolicyWork:
    """Count one policy call of `config`, its head in the steady state, over `text_tokens` or else the padded length.

    Camera resize, patch convolution (int8), attention scores (fp16) and the head stay in fp32, as the exporter leaves them.

    Raises ConfigError for a precision that has no form of its own here.
    """
    remedy = "Choose one of these names; `mixed` is known only from a bundle."
    tally = _Tally(_FORMS[one_of(_FORMS, precision, "precision", remedy=remedy)])
    _preprocess(tally, config)
    _vision(tally, config)
    _resampler(tally, config)
    _decoder(tally, config, text_tokens or config.decoder.text_length)
    _proprioception(tally, config)
    steps = head_steps(config)
    _head(tally, config, steps)
    vectors = {block: (elements, elements * FLOAT_BYTES) for block, elements in tally.vectors.items()}
    counts = Counter(matmul.stage for matmul in tally.matmuls)
    return PolicyWork(
        matmuls=tuple(tally.matmuls),
        vectors=vectors,
        head_steps=steps,
        operators={stage: _OPERATORS_PER_MATMUL * count for stage, count in counts.items()},
        embedding_bytes=config.decoder.vocab_size * config.decoder.width * FLOAT_BYTES,
    )


class _Tally:
    def __init__(self, form: _Form) -> None:
        self.matmuls: list[MatMul] = []
        self.vectors: dict[str, int] = {}
        self._form = form

    @property
    def keeps_convolution(self) -> bool:
        """Whether the patch convolution stays in fp32: integer forms leave it, 16-bit forms do not."""
        return self._form.arithmetic not in ("fp16", "bf16")

    def vector(self, block: str, elements: int) -> None:
        self.vectors[block] = self.vectors.get(block, 0) + elements

    def linear(
        self,
        block: str,
        rows: int,
        inner: int,
        columns: int,
        *,
        bias: bool = False,
        fp32: bool = False,
        writes: bool = True,
    ) -> None:
        """A MatMul of `rows` activations with an (inner, columns) weight; LSTM gates, not written, stay in the operator."""
        form = _FLOAT if fp32 else self._form
        elements = inner * columns
        self._add(
            block,
            macs=rows * elements,
            form=form,
            parameters=elements,
            weight_bytes=int(elements * form.weight_bits / 8) + form.scale_bytes * columns,
            activation_bytes=rows * (inner * form.input_bytes + columns * form.output_bytes * writes),
        )
        if bias:
            self.vector(block, columns)

    def convolution(self, block: str, places: int, inner: int, columns: int) -> None:
        """A 3x3 convolution of stride 2 with a bias: each of its inputs is read once, four for every place it writes."""
        form = _FLOAT if self.keeps_convolution else self._form
        elements = 9 * inner * columns
        self._add(
            block,
            macs=places * elements,
            form=form,
            parameters=elements,
            weight_bytes=int(elements * form.weight_bits / 8),
            activation_bytes=places * (4 * inner * form.input_bytes + columns * form.output_bytes),
        )
        self.vector(block, columns)

    def attention(self, block: str, batch_heads: int, queries: int, keys: int, head_size: int) -> None:
        """Scores, which stay in fp32, and the sum of values, which an fp16 graph computes in fp16."""
        macs = batch_heads * queries * keys * head_size
        half = self._form if self._form.arithmetic in ("fp16", "bf16") else _FLOAT
        touched = batch_heads * ((queries + keys) * head_size + queries * keys)
        for form in (_FLOAT, half):
            self._add(block, macs=macs, form=form, activation_bytes=touched * form.output_bytes)

    def constant_matmul(self, block: str, macs: int, constant_elements: int, activation_elements: int) -> None:
        """A MatMul with a float constant that nobody trained."""
        sizes = {"weight_bytes": constant_elements * FLOAT_BYTES, "activation_bytes": activation_elements * FLOAT_BYTES}
        self._add(block, macs=macs, form=_FLOAT, **sizes)

    def _add(
        self, block: str, *, macs: int, form: _Form, parameters: int = 0, weight_bytes: int = 0, activation_bytes: int = 0
    ) -> None:
        self.matmuls.append(
            MatMul(
                block=block,
                macs=macs,
                arithmetic=form.arithmetic,
                label=form.label if weight_bytes else form.arithmetic,
                parameters=parameters,
                weight_bytes=weight_bytes,
                activation_bytes=activation_bytes,
            )
        )


def _preprocess(tally: _Tally, config: PolicyConfig) -> None:
    size = config.vision.image_size
    for block, shape in (("preprocess_static", STATIC_IMAGE_SHAPE), ("preprocess_gripper", GRIPPER_IMAGE_SHAPE)):
        side = shape[0]
        matrix = side * size
        tally.constant_matmul(block, 3 * side * matrix, matrix, 3 * side * (side + size))
        tally.constant_matmul(block, 3 * size * matrix, matrix, 3 * size * (side + size))


def _vision(tally: _Tally, config: PolicyConfig) -> None:
    vision = config.vision
    cameras, width = 2, vision.width
    tokens = vision.num_patches + 1
    first, *others = (*vision.stem_widths, width)
    side = vision.patch_size // 2 ** len(others)
    # Not a MatMul of rows: neighbouring patches do not overlap, so each pixel is read once.
    places = cameras * (vision.image_size // side) ** 2
    tally.linear("vision", places, 3 * side**2, first, bias=bool(others), fp32=tally.keeps_convolution)
    for before, after in itertools.pairwise((first, *others)):
        places //= 4
        tally.convolution("vision", places, before, after)
    # Without a stem the camera normalisation gives the patch convolution a bias; a stem has one anyway.
    tally.vector("vision", (2 if others else 3) * width)
    for index in range(vision.layers):
        block = f"vision.blocks.{index}"
        rows = cameras * tokens
        tally.linear(block, rows, width, 3 * width, bias=True)
        tally.attention(block, cameras * vision.heads, tokens, tokens, width // vision.heads)
        tally.linear(block, rows, width, width, bias=True)
        tally.linear(block, rows, width, vision.mlp_ratio * width, bias=True)
        tally.linear(block, rows, vision.mlp_ratio * width, width, bias=True)
        tally.vector(block, 4 * width)


def _resampler(tally: _Tally, config: PolicyConfig) -> None:
    patches, own = config.vision.num_patches, config.resampler.per_camera
    if config.fusion == "pre":
        _one_resampler(tally, config, "resampler", images=1, tokens=2 * patches)
    elif own:
        for name in ("resampler", "resampler_gripper"):
            _one_resampler(tally, config, name, images=1, tokens=patches)
    else:
        _one_resampler(tally, config, "resampler", images=2, tokens=patches)


def _one_resampler(tally: _Tally, config: PolicyConfig, name: str, *, images: int, tokens: int) -> None:
    resampler, width = config.resampler, config.vision.width
    inner = resampler.heads * resampler.head_size
    latents = resampler.latents
    rows = images * latents
    for index in range(resampler.layers):
        block = f"{name}.layers.{index}"
        if index:  # the first layer's queries are constants: the latents themselves
            tally.linear(block, rows, width, inner)
        tally.linear(block, images * (tokens + latents), width, 2 * inner)
        tally.attention(block, images * resampler.heads, latents, tokens + latents, resampler.head_size)
        tally.linear(block, rows, inner, width)
        _feed_forward(tally, block, rows, width, resampler.mlp_ratio)
        tally.vector(block, (4 if index else 2) * width)
    tally.vector(name, 2 * width)


def _feed_forward(tally: _Tally, block: str, rows: int, width: int, ratio: int) -> None:
    tally.linear(block, rows, width, ratio * width)
    tally.linear(block, rows, ratio * width, width)
    tally.vector(block, 2 * width)


def _decoder(tally: _Tally, config: PolicyConfig, text_tokens: int) -> None:
    decoder, width = config.decoder, config.decoder.width
    batch = 2 if config.fusion == "two_way" else 1
    latents = config.latents_per_frame * config.media_frames // batch
    rows = batch * text_tokens
    for index in range(decoder.layers - (decoder.feature == "last_block_input")):
        if (index + 1) % decoder.cross_attention_every == 0:
            block = f"decoder.layers.{index}.cross_attention"
            heads, head_size = decoder.cross_attention_heads, decoder.cross_attention_head_size
            tally.linear(block, rows, width, heads * head_size)
            tally.linear(block, batch * latents, config.vision.width, 2 * heads * head_size)
            tally.attention(block, batch * heads, text_tokens, latents, head_size)
            tally.linear(block, rows, heads * head_size, width)
            _feed_forward(tally, block, rows, width, decoder.mlp_ratio)
            tally.vector(block, 2 * width)
        _decoder_block(tally, config, f"decoder.layers.{index}.block", batch, text_tokens)
    if decoder.feature == "final_norm":
        tally.vector("decoder", width * (2 if isinstance(decoder, GPTNeoXConfig) else 1))


def _decoder_block(tally: _Tally, config: PolicyConfig, block: str, batch: int, text_tokens: int) -> None:
    decoder, width = config.decoder, config.decoder.width
    rows, head_size = batch * text_tokens, decoder.width // decoder.heads
    if isinstance(decoder, LlamaConfig):
        key_value_width = head_size * decoder.key_value_heads
        for columns in (width, key_value_width, key_value_width):
            tally.linear(block, rows, width, columns)
    else:
        tally.linear(block, rows, width, 3 * width, bias=isinstance(decoder, GPTNeoXConfig))
    tally.attention(block, batch * decoder.heads, text_tokens, text_tokens, head_size)
    biased = isinstance(decoder, GPTNeoXConfig)
    tally.linear(block, rows, width, width, bias=biased)
    hidden = decoder.mlp_ratio * width if isinstance(decoder, MPTConfig) else decoder.mlp_width
    for _ in range(2 if isinstance(decoder, LlamaConfig) else 1):
        tally.linear(block, rows, width, hidden, bias=biased)
    tally.linear(block, rows, hidden, width, bias=biased)
    norms = 4 if biased else 2  # with biases two vectors a norm
    tally.vector(block, width * (norms + (2 if isinstance(decoder, MPTConfig) and decoder.qk_norm else 0)))


def _proprioception(tally: _Tally, config: PolicyConfig) -> None:
    if config.proprioception:
        width = config.feature_size
        tally.linear("proprioception", 1, POSE_SIZE, width, bias=True)
        tally.linear("proprioception", 1, 2 * width, width, bias=True)


def _head(tally: _Tally, config: PolicyConfig, steps: int) -> None:
    head, block, rows = config.head, "head", config.lstm_rows
    feature = config.feature_size
    if isinstance(head, LSTMHeadConfig):
        hidden = head.hidden_size
        for index in range(head.layers):
            for width in (hidden if index else feature, hidden):
                tally.linear(block, rows, width, 4 * hidden, fp32=True, writes=False)
            tally.vector(block, 8 * hidden)
    elif head.kind == "gpt":
        hidden = head.width
        tally.linear(block, steps, feature, hidden, bias=True, fp32=True)
        for _ in range(head.layers):
            tally.linear(block, steps, hidden, 3 * hidden, bias=True, fp32=True)
            tally.attention(block, head.heads, steps, steps, hidden // head.heads)
            tally.linear(block, steps, hidden, hidden, bias=True, fp32=True)
            tally.linear(block, steps, hidden, 4 * hidden, bias=True, fp32=True)
            tally.linear(block, steps, 4 * hidden, hidden, bias=True, fp32=True)
            tally.vector(block, 4 * hidden)
        tally.vector(block, 2 * hidden)
    else:
        hidden = head.hidden_size
        tally.linear(block, 1, feature, feature // 2, bias=True, fp32=True)
        tally.linear(block, 1, feature // 2, hidden, bias=True, fp32=True)
    for outputs in (POSE_SIZE * config.chunk_size, config.chunk_size):
        sizes = (hidden, *head.mlp_sizes, outputs)
        for inner, columns in itertools.pairwise(sizes):
            tally.linear(block, rows, inner, columns, bias=True, fp32=True)
