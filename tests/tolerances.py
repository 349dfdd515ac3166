"""How far two float32 computations of the same numbers may lie apart, from what is added up and never from one machine.

Which of a sum's terms are added first, and which MatMuls are fused with their sum, is the choice of a CPU's kernels. Each
addition rounds by at most u = 2^-24 of what it holds, and roundings are independent: after n of them a number is off by at
most s u sqrt(n) of its magnitude, but for one number in 10^13 with s = 8 (2 exp(-s^2 / 2)). Squares add, so through the
layers of a network n is the number of additions behind one another. Two computations differ by both their errors, 2 u.

Source: Higham, Mary: Sharper Probabilistic Backward Error Analysis for Basic Linear Algebra Kernels with Random Data, SIAM
Journal on Scientific Computing 42 (5), 2020.
"""

from typing import Any, Final

import numpy as np

from rfedge.config import DecoderConfig, GPTHeadConfig, LSTMHeadConfig, PolicyConfig

_SURE: Final = 8.0
_TWICE_U: Final = float(np.finfo(np.float32).eps)


def fp32_tolerance(num_terms: int) -> float:
    """Return the largest difference of two computations with `num_terms` additions, relative to the magnitude."""
    return float(_SURE * _TWICE_U * np.sqrt(num_terms))


def assert_same_in_fp32(actual: Any, expected: Any, num_terms: int, err_msg: str = "") -> None:
    """Compare arrays or tensors, relative to the largest number: what is small is a difference of large ones.

    Args:
        actual, expected: of one shape.
        num_terms: additions behind one another on the way to one number, see `policy_terms`.
        err_msg: what it is.
    """
    actual, expected = (np.asarray(value, dtype=np.float64) for value in (actual, expected))
    largest = float(np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=fp32_tolerance(num_terms) * largest, err_msg=err_msg)


def backbone_terms(config: PolicyConfig) -> int:
    """Return the additions behind one another from a pixel to the feature."""
    vision, resampler = config.vision, config.resampler
    pixels = 3 * vision.patch_size**2 + 9 * sum(vision.stem_widths)
    tokens = 2 * (vision.num_patches + resampler.latents)
    inner = resampler.heads * resampler.head_size
    return (
        pixels
        + vision.layers * _block(vision.width, vision.width, vision.num_patches, vision.width * vision.mlp_ratio)
        + resampler.layers * _block(vision.width, inner, tokens, vision.width * resampler.mlp_ratio)
        + decoder_terms(config.decoder, resampler.latents * 2 * config.media_frames)
    )


def decoder_terms(decoder: DecoderConfig, num_media: int) -> int:
    """Return the additions behind one another from `num_media` latents or a text to the feature."""
    crossed = decoder.cross_attention_heads * decoder.cross_attention_head_size
    mlp_width = decoder.width * decoder.mlp_ratio
    block = _block(decoder.width, decoder.width, decoder.text_length, mlp_width)
    return decoder.layers * (block + _block(decoder.width, crossed, num_media, mlp_width)) + decoder.text_length


def head_terms(config: PolicyConfig) -> int:
    """Return the additions behind one another from a feature to an action, or to what an LSTM remembers.

    Those of one step: what an LSTM keeps of an earlier step it keeps of its number and of its error alike.
    """
    head = config.head
    if isinstance(head, LSTMHeadConfig):
        body = config.feature_size + head.hidden_size * (2 * head.layers - 1)
    elif isinstance(head, GPTHeadConfig):
        body = config.feature_size + head.layers * _block(head.width, head.width, config.window, 4 * head.width)
    else:
        body = config.feature_size + head.hidden_size
    return body + sum(head.mlp_sizes)


def policy_terms(config: PolicyConfig) -> int:
    """Return the additions behind one another from a pixel to an action."""
    return backbone_terms(config) + head_terms(config)


def _block(width: int, inner: int, keys: int, mlp_width: int) -> int:
    # two norms, of q or k, scores and their mean; the two projections around them; the MLP
    return 2 * width + inner + keys + width + inner + width + mlp_width
