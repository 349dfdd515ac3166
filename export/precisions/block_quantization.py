"""Weights as small integers: one scale per output column, or one per block of 32 inputs of a column."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from rfedge.export.int8.rounding import Grid, round_compensated_to

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

# fp16's smallest normal number: a block of zeros has this scale.
_LEAST_POSITIVE: Final = np.float32(np.finfo(np.float16).smallest_normal)
# Share of the mean variance; GPTQ's own. A tenth and five times of it are as good (docs/adr/0016).
_DAMPING: Final = 0.01

BLOCK_SIZE: Final = 32
# Numbers are 0 to 15; this one is zero.
_ZERO: Final = np.uint8(8)

# K = inputs of a MatMul, N = its outputs, B = blocks of a column (K / 32, rounded up)


class BlockQuantized(NamedTuple):
    """Blocks of one weight: value = (number - 8) * scale.

    Attributes:
        numbers: uint8 (B, 32, N), 0 to 15; the rows beyond K are 0, and meet an input that is 0.
        scales: float32 (B, N), above zero.
    """

    numbers: UInt8
    scales: Float32


def quantize_columns(weight: Float32) -> tuple[npt.NDArray[np.int8], Float32]:
    """Round a weight (K, N) to int8 (K, N), symmetric in -127 to 127, with one scale per column (N,)."""
    largest = np.abs(weight).max(axis=0)
    scale = largest / np.float32(127)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale).astype(np.float32)
    return np.rint(weight / scale).clip(-127, 127).astype(np.int8), scale


def quantize_blocks(weight: Float32) -> BlockQuantized:
    """Round each block of 32 inputs of a column of a weight (K, N) to 4 bits, -8 to 7; scales are above 0 for TensorRT."""
    num_inputs, num_outputs = weight.shape
    num_blocks = -(-num_inputs // BLOCK_SIZE)
    padded = np.zeros((num_blocks * BLOCK_SIZE, num_outputs), np.float32)
    padded[:num_inputs] = weight
    blocks = padded.reshape(num_blocks, BLOCK_SIZE, num_outputs)
    scales: Float32 = np.maximum(blocks.max(axis=1) / np.float32(7), blocks.min(axis=1) / np.float32(-8))
    scales = np.where(scales < _LEAST_POSITIVE, _LEAST_POSITIVE, scales)
    exact = blocks * (np.float32(1) / scales)[:, None] + np.float32(_ZERO)
    rounded = _round_half_away(exact).clip(0, 15).astype(np.uint8)
    rounded.reshape(-1, num_outputs)[num_inputs:] = 0
    return BlockQuantized(rounded, scales)


def _round_half_away(x: Float32) -> Float32:
    """C's roundf of numbers at or above zero; adding 0.5 first would carry 0.49999997 up to 1."""
    rounded = np.floor(x)
    result: Float32 = rounded + (x - rounded >= np.float32(0.5))
    return result


def compensate_blocks(nearest: BlockQuantized, weight: Float32, covariance: Float32) -> BlockQuantized:
    """Return `nearest`, the blocks of `weight` (K, N), with the numbers that GPTQ chooses for their scales.

    Args:
        weight: float32 (K, N).
        covariance: float32 (K, K) of what the weight multiplies.
    """
    scale = np.repeat(nearest.scales, BLOCK_SIZE, axis=0)[: len(weight)]
    zero = np.full_like(scale, _ZERO)
    noise = _DAMPING * float(covariance.diagonal().mean(dtype=np.float64))
    levels = round_compensated_to(Grid(scale, zero, 0, 15), weight, covariance, noise=noise)
    numbers = np.zeros_like(nearest.numbers)
    numbers.reshape(-1, weight.shape[1])[: len(weight)] = levels
    return nearest._replace(numbers=numbers)


def dequantize_blocks(quantized: BlockQuantized, num_inputs: int) -> Float32:
    """Return the float32 weight (K, N) that the blocks stand for."""
    centred = quantized.numbers.astype(np.float32) - np.float32(_ZERO)
    weight: Float32 = (centred * quantized.scales[:, None]).reshape(-1, quantized.scales.shape[1])
    return weight[:num_inputs]
