"""Float matrices to integers: to the nearest, or so that rounding errors make up for each other.

`compensated` rounds one input channel after the other and moves what it lost onto the channels still to come, weighted
by how the inputs vary together. Source: GPTQ (Frantar et al. 2022), there with the Hessian of the inputs; here with
their covariance, because the error at the mean is corrected by the bias, plus the noise of their own rounding. The same
numbers come without the inverse that GPTQ takes: its channel by channel rounding is Babai's nearest plane on the
Cholesky factor (Chen et al. 2025), which halves the work.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from rfedge.arrays import Float32, Int8
from rfedge.export.int8.ranges import LEVELS, scale_from_amax

Floats = npt.NDArray[np.floating[Any]]
Rounded = tuple[Int8, Float32]  # (inputs, outputs), (outputs,)


class Grid(NamedTuple):
    """The numbers that weights (inputs, outputs) may take: (level - zero_point) * scale."""

    scale: Float32  # (inputs, outputs), or (1, outputs) for one scale per output; none is 0
    zero_point: Float32  # shaped as `scale`
    low: int
    high: int

    def reordered(self, order: npt.NDArray[np.intp]) -> Grid:
        if len(self.scale) == 1:
            return self
        return self._replace(scale=self.scale[order], zero_point=self.zero_point[order])

    def row(self, index: int) -> tuple[Float32, Float32]:
        index = index if len(self.scale) > 1 else 0
        return self.scale[index], self.zero_point[index]


_STRIPE: Final = 128  # channels rounded between two MatMuls with those that were rounded before
_PANEL: Final = 256  # columns factored between two MatMuls with those before them
# Wider MatMuls are computed in single precision, which halves their time; the error of their output over the calibration
# frames moves by a few thousandths of itself, either way.
DOUBLE_UP_TO: Final = 2048
# Relative to the mean variance: keeps the covariance of few frames invertible.
_DAMPING: Final = 1e-4


def weight_steps(weight: Float32) -> Float32:
    """Return the scale of each column, float32 (outputs,)."""
    return np.array([scale_from_amax(magnitude) for magnitude in np.abs(weight).max(axis=0)], np.float32)


def round_nearest(weight: Float32) -> Rounded:
    """Round (inputs, outputs) to int8 in [-127, 127] and return it with its scales."""
    steps = weight_steps(weight)
    return np.clip(np.rint(weight / steps), -LEVELS, LEVELS).astype(np.int8), steps


def round_compensated(
    weight: Float32, covariance: Float32, input_step: float, *, double_up_to: int = DOUBLE_UP_TO
) -> Rounded:
    """Round (inputs, outputs) to int8 so that the MatMul's output over the calibration frames changes least.

    `covariance` (inputs, inputs) is of the MatMul's input, whose own rounding adds input_step^2 / 12 to every variance.
    """
    steps = weight_steps(weight)
    grid = Grid(steps[None], np.zeros_like(steps)[None], -LEVELS, LEVELS)
    noise = input_step**2 / 12 + _DAMPING * float(covariance.diagonal().astype(np.float64).mean())
    return round_compensated_to(grid, weight, covariance, noise=noise, double_up_to=double_up_to).astype(np.int8), steps


def round_compensated_to(
    grid: Grid, weight: Float32, covariance: Float32, *, noise: float, double_up_to: int = DOUBLE_UP_TO
) -> npt.NDArray[np.int16]:
    """Return the levels (inputs, outputs) of `grid` that change the output over the calibration frames least.

    `covariance` is (inputs, inputs) of what the weight multiplies; `noise`, a variance that every input has besides, keeps
    the covariance of few frames invertible.
    """
    variances = covariance.diagonal().astype(np.float64)
    added = noise + float(np.finfo(np.float32).tiny)
    # The loudest last, because the last is rounded first: many are left to make up for it.
    order = np.argsort(-variances, kind="stable")[::-1]
    try:
        factor = _factor(covariance, order, added, np.dtype(np.float64 if len(order) <= double_up_to else np.float32))
    except np.linalg.LinAlgError:  # too near to singular for single precision
        factor = _factor(covariance, order, added, np.dtype(np.float64))
    result = np.empty(weight.shape, np.int16)
    result[order] = _round_last_first(weight[order].astype(factor.dtype), factor, grid.reordered(order))
    return result


def _factor(covariance: Float32, order: npt.NDArray[np.intp], added: float, dtype: np.dtype[np.floating[Any]]) -> Floats:
    """Return the lower Cholesky factor of the covariance in another order, `added` to its diagonal; above it is anything.

    Panel by panel, so that all but a few of the operations are large MatMuls: LAPACK's takes several times as long.
    """
    factor = np.empty(covariance.shape, dtype)
    for start in range(0, len(order), _PANEL):
        factor[start : start + _PANEL] = covariance[order[start : start + _PANEL]][:, order]
    factor[np.diag_indices(len(order))] += dtype.type(added)
    for start in range(0, len(order), _PANEL):
        stop = start + _PANEL
        panel = factor[start:, start:stop]
        panel -= factor[start:, :start] @ factor[start:stop, :start].T
        top = np.linalg.cholesky(panel[:_PANEL].astype(np.float64))
        panel[:_PANEL] = top
        panel[_PANEL:] = panel[_PANEL:] @ np.linalg.inv(top).T.astype(dtype)
    return factor


def _round_last_first(lost: Floats, factor: Floats, grid: Grid) -> npt.NDArray[np.int16]:
    """Round every row, the last first, each to where it makes up best for what those behind it lost; `lost` is overwritten.

    The error of the output is the length of factor.T @ lost, whose row i depends on rows i and later alone.
    """
    rounded = np.empty(lost.shape, np.int16)
    diagonal = factor.diagonal()[:, None].copy()
    for stop in range(len(lost), 0, -_STRIPE):
        start = max(stop - _STRIPE, 0)
        own = lost[start:stop]
        near = factor[start:stop, start:stop].T / diagonal[start:stop]
        target = own + factor[stop:, start:stop].T @ lost[stop:] / diagonal[start:stop]
        for index in range(len(own) - 1, -1, -1):
            target[index] += near[index, index + 1 :] @ own[index + 1 :]
            scale, zero_point = grid.row(start + index)
            levels = np.clip(np.rint(target[index] / scale + zero_point), grid.low, grid.high)
            rounded[start + index] = levels
            own[index] -= (levels - zero_point) * scale
    return rounded
