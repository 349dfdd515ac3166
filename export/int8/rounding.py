"""Float matrices to int8, one scale per output: to the nearest, or so that rounding errors make up for each other.

`compensated` rounds one input channel after the other and moves what it lost onto the channels still to come, weighted
by how the inputs vary together. Source: GPTQ (Frantar et al. 2022), there with the Hessian of the inputs; here with
their covariance, because the error at the mean is corrected by the bias, plus the noise of their own rounding.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from rfedge.export.int8.ranges import LEVELS, step_of

__all__ = ["Rounded", "round_compensated", "round_nearest", "weight_steps"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int8 = npt.NDArray[np.int8]
Rounded = tuple[Int8, Float32]  # (inputs, outputs), (outputs,)

_STRIPE: Final = 128  # channels rounded before the rest of the matrix is brought up to date
# Relative to the mean variance: keeps the covariance of few frames invertible.
_DAMPING: Final = 1e-4


def weight_steps(weight: Float32) -> Float32:
    """Return the scale of each column, float32 (outputs,)."""
    return np.array([step_of(magnitude) for magnitude in np.abs(weight).max(axis=0)], np.float32)


def round_nearest(weight: Float32) -> Rounded:
    """Round (inputs, outputs) to int8 in [-127, 127] and return it with its scales."""
    steps = weight_steps(weight)
    return np.clip(np.rint(weight / steps), -LEVELS, LEVELS).astype(np.int8), steps


def round_compensated(weight: Float32, covariance: Float32, input_step: float) -> Rounded:
    """Round (inputs, outputs) to int8 so that the product's output over the calibration frames changes least.

    Args:
        weight: float32.
        covariance: (inputs, inputs) of the product's input.
        input_step: scale of the product's input, whose own rounding adds step^2 / 12 to every variance.
    """
    steps = weight_steps(weight)
    variance = covariance.astype(np.float64)
    diagonal = np.diag_indices(len(variance))
    variance[diagonal] += input_step**2 / 12 + _DAMPING * variance[diagonal].mean() + np.finfo(np.float32).tiny
    order = np.argsort(-variance[diagonal], kind="stable")  # the loudest first: many are left to make up for them
    # The upper factor of the inverse: the inverse of the factor of the matrix read backwards.
    backwards = np.ix_(order[::-1], order[::-1])
    factor: Float64 = np.asarray(np.linalg.cholesky(variance[backwards]), dtype=np.float64)
    upper = _invert_lower(factor)[::-1, ::-1]
    rest: Float64 = weight[order].astype(np.float64)
    rounded = np.empty(rest.shape, np.int8)
    for start in range(0, len(rest), _STRIPE):
        stop = min(start + _STRIPE, len(rest))
        lost = np.empty((stop - start, rest.shape[1]))
        for index in range(start, stop):
            levels = np.clip(np.rint(rest[index] / steps), -LEVELS, LEVELS)
            rounded[index] = levels
            lost[index - start] = (rest[index] - levels * steps) / upper[index, index]
            rest[index + 1 : stop] -= np.outer(upper[index, index + 1 : stop], lost[index - start])
        rest[stop:] -= upper[start:stop, stop:].T @ lost
    result = np.empty_like(rounded)
    result[order] = rounded
    return result, steps


def _invert_lower(matrix: Float64) -> Float64:
    """Invert a lower triangular matrix by halves: a sixth of the work of an inverse that does not know the zeros."""
    half = len(matrix) // 2
    if half < _STRIPE:
        return np.asarray(np.linalg.inv(matrix), dtype=np.float64)
    result = np.zeros_like(matrix)
    result[:half, :half] = _invert_lower(matrix[:half, :half])
    result[half:, half:] = _invert_lower(matrix[half:, half:])
    result[half:, :half] = -result[half:, half:] @ (matrix[half:, :half] @ result[:half, :half])
    return result
