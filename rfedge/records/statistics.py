"""Summaries of repeated timings, and ratios, proportions and means with an honest interval.

Medians, because a shared machine adds delays and never takes time away; percentiles that are real samples
(`method="higher"`), because an interpolated p99 of 200 calls is a number nobody measured.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rfedge.records.record import Record

NUM_RESAMPLES: Final = 2000
CONFIDENCE: Final = 0.95


class Summary(Record):
    """Milliseconds of `n` samples."""

    n: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    def divided(self, by: float) -> Summary:
        """Return every duration divided by `by`, the cost spread over that many control steps."""
        return Summary(n=self.n, **{name: getattr(self, name) / by for name in ("mean", "p50", "p90", "p99", "max")})


class Ratio(Record):
    """One series over another, by medians or sums as its place says, with a bootstrap interval at `CONFIDENCE`."""

    value: float
    low: float
    high: float


def summarise(samples_ms: npt.NDArray[np.floating[Any]]) -> Summary:
    """Summarise durations (n,) in milliseconds, n >= 1."""
    p50, p90, p99 = (float(np.quantile(samples_ms, level, method="higher")) for level in (0.5, 0.9, 0.99))
    return Summary(n=len(samples_ms), mean=float(samples_ms.mean()), p50=p50, p90=p90, p99=p99, max=float(samples_ms.max()))


def ratio_of_medians(
    numerator_ms: npt.NDArray[np.floating[Any]], denominator_ms: npt.NDArray[np.floating[Any]], *, seed: int
) -> Ratio:
    """Return median(numerator) / median(denominator) for two series (n,) taken in the same rounds.

    The bootstrap samples whole rounds: both samples of a round saw the same machine, so its drift cancels in the ratio.
    """
    rounds = _resamples(len(numerator_ms), seed)
    ends = _interval(np.median(numerator_ms[rounds], axis=1) / np.median(denominator_ms[rounds], axis=1))
    return Ratio(value=float(np.median(numerator_ms) / np.median(denominator_ms)), **ends)


def _resamples(size: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, size, size=(NUM_RESAMPLES, size))


def _interval(statistics: npt.NDArray[np.floating[Any]]) -> dict[str, float]:
    """Return `low` and `high` of a statistic of all resamples."""
    low, high = np.quantile(statistics, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"low": float(low), "high": float(high)}


class Proportion(Record):
    """How many of `n` succeeded, with Wilson's interval at `CONFIDENCE`."""

    successes: int
    n: int
    value: float
    low: float
    high: float


class Mean(Record):
    """Mean of `n` values, with a bootstrap interval at `CONFIDENCE`."""

    n: int
    value: float
    low: float
    high: float


def proportion(successes: int, n: int) -> Proportion:
    """Return successes / n, n >= 1, with Wilson's score interval, which holds for few trials and near 0 and 1 too."""
    value, z = successes / n, NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    # At 0 and 1 the interval ends there exactly; rounding may leave it a little beside.
    low, high = min(value, max(0.0, centre - half_width)), max(value, min(1.0, centre + half_width))
    return Proportion(successes=successes, n=n, value=value, low=low, high=high)


def mean_with_interval(
    values: npt.NDArray[np.floating[Any]], *, seed: int, between: tuple[float, float] | None = None
) -> Mean:
    """Return the mean of independent values (n,), n >= 1; `between` are the least and most that one can be.

    Samples that are all alike, which a bootstrap takes for certain, then have the interval that leaves room for the others
    that were not met.
    """
    if between is not None and np.ptp(values) == 0:
        unseen = 1.0 - ((1 - CONFIDENCE) / 2) ** (1 / len(values))  # share of others, met by no sample with that chance
        value = float(values[0])
        low, high = (value + unseen * (end - value) for end in between)
        return Mean(n=len(values), value=value, low=low, high=high)
    ends = _interval(values[_resamples(len(values), seed)].mean(axis=1))
    return Mean(n=len(values), value=float(values.mean()), **ends)


def ratio_of_sums(
    numerator: npt.NDArray[np.floating[Any]], denominator: npt.NDArray[np.floating[Any]], *, seed: int
) -> Ratio | None:
    """Return sum(numerator) / sum(denominator) of paired values (n,), n >= 1; None where the denominator adds up to 0.

    The bootstrap samples whole pairs. A draw whose denominator adds up to 0 has no ratio and is left out, so for a
    denominator of few successes the interval is too narrow.
    """
    if not denominator.sum():
        return None
    picks = _resamples(len(numerator), seed)
    over, under = numerator[picks].sum(axis=1), denominator[picks].sum(axis=1)
    ends = _interval(over[under != 0] / under[under != 0])
    return Ratio(value=float(numerator.sum() / denominator.sum()), **ends)
