"""Weights as small integers: one scale per output column, or one per block of 32 inputs of a column, packed in bytes.

Rounding and packing are those of ONNX Runtime's MatMulNBits (a test compares byte for byte with its own packer, which
is not called here because importing it reconfigures the logging of the whole program and reads whole models).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from rfedge.export.int8.rounding import Grid, round_compensated_to

__all__ = [
    "BlockQuantized",
    "compensate_blocks",
    "dequantize_blocks",
    "pack_blocks",
    "pack_nibbles",
    "quantize_blocks",
    "quantize_columns",
]

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

_NO_SCALE: Final = np.float32(1e30)
# fp16's smallest normal number: a block of zeros has this scale.
_LEAST_POSITIVE: Final = np.float32(np.finfo(np.float16).smallest_normal)
# Share of the mean variance; GPTQ's own. A tenth and five times of it are as good (docs/adr/0016).
_DAMPING: Final = 0.01

# K = inputs of a MatMul, N = its outputs, B = blocks of a column (K / block size, rounded up), S = block size


class BlockQuantized(NamedTuple):
    """Blocks of one weight: value = (number - zero_point) * scale.

    Attributes:
        numbers: uint8 (B, S, N); the rows beyond K are 0, and meet an input that is 0.
        scales: float32 (B, N).
        zero_points: uint8 (B, N); the middle of the range everywhere when symmetric.
    """

    numbers: UInt8
    scales: Float32
    zero_points: UInt8


def quantize_columns(weight: Float32) -> tuple[npt.NDArray[np.int8], Float32]:
    """Round a weight (K, N) to int8 (K, N), symmetric in -127 to 127, with one scale per column (N,)."""
    largest = np.abs(weight).max(axis=0)
    scale = largest / np.float32(127)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale).astype(np.float32)
    return np.rint(weight / scale).clip(-127, 127).astype(np.int8), scale


def quantize_blocks(
    weight: Float32, *, bits: int, block_size: int, symmetric: bool, positive: bool = False
) -> BlockQuantized:
    """Round each block of `block_size` inputs of a column of a weight (K, N) to unsigned integers of `bits` bits.

    Symmetric: the number of the largest magnitude becomes the end of the range that has one more step (-8 of -8 to 7), for
    which its scale may be negative; `positive` keeps scales above zero, as TensorRT's parser demands, at 7 steps for it.
    Asymmetric: the range from the smallest to the largest number, 0 included, is divided evenly.
    """
    num_inputs, num_outputs = weight.shape
    num_blocks = -(-num_inputs // block_size)
    padded = np.zeros((num_blocks * block_size, num_outputs), np.float32)
    padded[:num_inputs] = weight
    blocks = padded.reshape(num_blocks, block_size, num_outputs)
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    levels, middle = (1 << bits) - 1, 1 << (bits - 1)
    if symmetric:
        if positive:
            scales = np.maximum(high / np.float32(middle - 1), low / np.float32(-middle))
            scales = np.where(scales < _LEAST_POSITIVE, _LEAST_POSITIVE, scales)
        else:
            signed = np.where(np.abs(high) > np.abs(low), high, low)
            scales = signed / np.float32(-middle)
        zero_points = np.full(scales.shape, middle, np.uint8)
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scales = (high - low) / np.float32(levels)
        with np.errstate(divide="ignore", invalid="ignore"):
            ideal = np.where(scales > 0, (0 - low) / scales, np.float32(0))
        zero_points = _round_half_away(ideal).clip(0, levels).astype(np.uint8)
    # Smaller scales have no reciprocal in fp32; such a block is zero.
    scales = np.where(np.abs(scales) < np.finfo(np.float32).tiny, 0, scales).astype(np.float32)
    with np.errstate(divide="ignore"):
        inverse = np.where(scales != 0, np.float32(1) / scales, np.float32(0)).astype(np.float32)
    exact = blocks * inverse[:, None] + zero_points[:, None]
    rounded = _round_half_away(exact).clip(0, levels).astype(np.uint8)
    rounded.reshape(-1, num_outputs)[num_inputs:] = 0
    return BlockQuantized(rounded, scales, zero_points)


def _round_half_away(x: Float32) -> Float32:
    """C's roundf of numbers at or above zero; adding 0.5 first would carry 0.49999997 up to 1."""
    rounded = np.floor(x)
    result: Float32 = rounded + (x - rounded >= np.float32(0.5))
    return result


def compensate_blocks(nearest: BlockQuantized, weight: Float32, covariance: Float32, *, bits: int) -> BlockQuantized:
    """Return `nearest`, the blocks of `weight` (K, N), with the numbers that GPTQ chooses for their scales and zero points.

    Args:
        nearest: of `quantize_blocks`.
        weight: float32 (K, N).
        covariance: float32 (K, K) of what the weight multiplies.
        bits: of a number.
    """
    num_inputs = len(weight)
    # A block without a scale is zero whatever its numbers are; on this scale each is its zero point.
    scales = np.where(nearest.scales == 0, _NO_SCALE, nearest.scales)
    scale, zero_point = (
        np.repeat(array.astype(np.float32), nearest.numbers.shape[1], axis=0)[:num_inputs]
        for array in (scales, nearest.zero_points)
    )
    noise = _DAMPING * float(covariance.diagonal().mean(dtype=np.float64))
    levels = round_compensated_to(Grid(scale, zero_point, 0, (1 << bits) - 1), weight, covariance, noise=noise)
    numbers = np.zeros_like(nearest.numbers)
    numbers.reshape(-1, weight.shape[1])[:num_inputs] = levels
    return nearest._replace(numbers=numbers)


def dequantize_blocks(quantized: BlockQuantized, num_inputs: int) -> Float32:
    """Return the float32 weight (K, N) that the blocks stand for."""
    centred = quantized.numbers.astype(np.float32) - quantized.zero_points[:, None].astype(np.float32)
    weight = (centred * quantized.scales[:, None]).reshape(-1, quantized.scales.shape[1])
    return weight[:num_inputs]


def pack_blocks(quantized: BlockQuantized, *, bits: int, symmetric: bool) -> dict[str, npt.NDArray[np.generic]]:
    """Return the inputs of MatMulNBits: B uint8 (N, blocks, bytes), scales (N, blocks) and, asymmetric, zero points."""
    by_column = quantized.numbers.transpose(2, 0, 1)
    packed: dict[str, npt.NDArray[np.generic]] = {
        "B": pack_nibbles(by_column) if bits == 4 else np.ascontiguousarray(by_column),
        "scales": np.ascontiguousarray(quantized.scales.T),
    }
    if not symmetric:
        zero_points = np.ascontiguousarray(quantized.zero_points.T)
        if bits == 4:
            odd = zero_points.shape[1] % 2
            # The neighbour that an odd number of blocks lacks is the middle, as in ONNX Runtime's packer.
            zero_points = pack_nibbles(np.pad(zero_points, ((0, 0), (0, odd)), constant_values=8))
        packed["zero_points"] = zero_points
    return packed


_LOW_NIBBLE: Final = np.uint8(0x0F)


def pack_nibbles(numbers: UInt8) -> UInt8:
    """Pack pairs along the last axis into bytes, the first of a pair in the low four bits."""
    packed: UInt8 = (numbers[..., 0::2] & _LOW_NIBBLE) | ((numbers[..., 1::2] & _LOW_NIBBLE) << np.uint8(4))
    return packed
