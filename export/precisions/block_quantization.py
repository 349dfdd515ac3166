"""Weights as small integers: one scale per output column, or one per block of 32 inputs of a column."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from rfedge.arrays import Float32, Int8, UInt8
from rfedge.export.int8.rounding import Grid, round_compensated_to

# fp16's smallest normal number: a block of zeros has this scale.
_LEAST_POSITIVE: Final = np.float32(np.finfo(np.float16).smallest_normal)
# Share of the mean variance; GPTQ's own. A tenth and five times of it are as good (docs/adr/0016).
_DAMPING: Final = 0.01

BLOCK_SIZE: Final = 32
# Numbers are 0 to 15; this one is zero.
_ZERO: Final = np.uint8(8)

# K = inputs of a MatMul, N = its outputs, B = blocks of a column (K / 32)


class BlockQuantized(NamedTuple):
    """Blocks of one weight: value = (number - 8) * scale."""

    numbers: UInt8  # (B, 32, N), 0 to 15
    scales: Float32  # (B, N), above zero


def quantize_columns(weight: Float32) -> tuple[Int8, Float32]:
    """Round a weight (K, N) to int8 (K, N), symmetric in -127 to 127, with one scale per column (N,)."""
    largest = np.abs(weight).max(axis=0)
    scale = largest / np.float32(127)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale).astype(np.float32)
    return np.rint(weight / scale).clip(-127, 127).astype(np.int8), scale


def quantize_blocks(weight: Float32) -> BlockQuantized:
    """Round each block of 32 inputs of a column of a weight (K, N) to 4 bits, -8 to 7; scales are above 0 for TensorRT."""
    blocks = weight.reshape(-1, BLOCK_SIZE, weight.shape[1])
    scales: Float32 = np.maximum(blocks.max(axis=1) / np.float32(7), blocks.min(axis=1) / np.float32(-8))
    scales = np.where(scales < _LEAST_POSITIVE, _LEAST_POSITIVE, scales)
    exact = blocks * (np.float32(1) / scales)[:, None] + np.float32(_ZERO)
    return BlockQuantized(_round_half_away(exact).clip(0, 15).astype(np.uint8), scales)


def _round_half_away(x: Float32) -> Float32:
    """C's roundf of numbers at or above zero; adding 0.5 first would carry 0.49999997 up to 1."""
    rounded = np.floor(x)
    result: Float32 = rounded + (x - rounded >= np.float32(0.5))
    return result


def compensate_blocks(nearest: BlockQuantized, weight: Float32, covariance: Float32) -> BlockQuantized:
    """Return `nearest`, the blocks of `weight` (K, N), with the numbers of GPTQ by the covariance (K, K) of its inputs."""
    scale = np.repeat(nearest.scales, BLOCK_SIZE, axis=0)
    zero = np.full_like(scale, _ZERO)
    noise = _DAMPING * float(covariance.diagonal().mean(dtype=np.float64))
    levels = round_compensated_to(Grid(scale, zero, 0, 15), weight, covariance, noise=noise)
    return nearest._replace(numbers=levels.astype(np.uint8).reshape(nearest.numbers.shape))


def dequantize_blocks(quantized: BlockQuantized) -> Float32:
    """Return the float32 weight (K, N) that the blocks stand for."""
    centred = quantized.numbers.astype(np.float32) - np.float32(_ZERO)
    weight: Float32 = (centred * quantized.scales[:, None]).reshape(-1, quantized.scales.shape[1])
    return weight
