"""Compensated rounding against the textbook's way to the same numbers, and in single precision."""

import numpy as np
import pytest

from rfedge.export.int8.rounding import Rounded, round_compensated, round_nearest, weight_steps


def sample_matmul(channels: int, outputs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """A weight (channels, outputs), the covariance of an input to it, and the scale of that input.

    The inputs vary in a few hundred ways of falling strength, and are cut off at zero, as after an activation function.
    """
    ways = min(300, channels)
    directions = (
        rng.standard_normal((ways, channels), np.float32) * np.arange(1, ways + 1, dtype=np.float32)[:, None] ** -0.5
    )
    inputs = np.maximum(rng.standard_normal((2000, ways), np.float32) @ directions, 0)
    step = float(inputs.max()) / 127
    inputs -= inputs.mean(axis=0)
    weight = rng.standard_normal((channels, outputs), np.float32) * np.float32(channels**-0.5)
    return weight, (inputs.T @ inputs / 2000).astype(np.float32), step


def output_error(rounded: Rounded, weight: np.ndarray, covariance: np.ndarray, step: float) -> float:
    """Mean square error of the MatMul's output, over inputs with the covariance and their own rounding."""
    lost = rounded[0] * rounded[1] - weight
    squares = np.einsum("ij,ij->", lost, covariance @ lost, dtype=np.float64)
    return float((squares + step**2 / 12 * np.einsum("ij,ij->", lost, lost, dtype=np.float64)) / weight.shape[1])


def round_by_inverse(weight: np.ndarray, covariance: np.ndarray, input_step: float) -> np.ndarray:
    """GPTQ as its paper has it: one channel after the other, the rest moved by the factor of the inverse."""
    variance = covariance.astype(np.float64)
    diagonal = np.diag_indices(len(variance))
    variance[diagonal] += input_step**2 / 12 + 1e-4 * variance[diagonal].mean() + np.finfo(np.float32).tiny
    order = np.argsort(-variance[diagonal], kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(variance[np.ix_(order, order)])).T
    rest, steps = weight[order].astype(np.float64), weight_steps(weight)
    result = np.empty(weight.shape, np.int8)
    for index in range(len(order)):
        levels = np.clip(np.rint(rest[index] / steps), -127, 127)
        result[order[index]] = levels
        lost = (rest[index] - levels * steps) / upper[index, index]
        rest[index + 1 :] -= np.outer(upper[index, index + 1 :], lost)
    return result


@pytest.mark.parametrize("channels", [1, 5, 128, 129, 300, 513])
def test_the_numbers_are_those_of_the_inverse(channels: int) -> None:
    """One channel, less than a stripe, a stripe, one more, and more than one panel."""
    weight, covariance, step = sample_matmul(channels, 24, np.random.default_rng(channels))
    levels, steps = round_compensated(weight, covariance, step)
    np.testing.assert_array_equal(levels, round_by_inverse(weight, covariance, step))
    np.testing.assert_array_equal(steps, weight_steps(weight))


def test_single_precision_is_as_good() -> None:
    weight, covariance, step = sample_matmul(700, 64, np.random.default_rng(0))
    errors = [
        output_error(rounded, weight, covariance, step)
        for rounded in (
            round_compensated(weight, covariance, step),
            round_compensated(weight, covariance, step, double_up_to=0),
            round_nearest(weight),
        )
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.01)
    assert errors[0] < 0.5 * errors[2]


def test_what_single_precision_cannot_factor_is_computed_in_double() -> None:
    """One way to vary, a thousand times stronger than all else."""
    rng = np.random.default_rng(0)
    inputs = (1e3 * rng.normal(size=(2000, 1)) * np.abs(rng.normal(size=(1, 3000)))).astype(np.float32)
    covariance = inputs.T @ inputs / np.float32(2000)
    weight = rng.normal(size=(3000, 2)).astype(np.float32)
    in_double = round_compensated(weight, covariance, 1e-6, double_up_to=3000)
    np.testing.assert_array_equal(round_compensated(weight, covariance, 1e-6, double_up_to=0)[0], in_double[0])
