"""From magnitudes to the one number that a symmetric range is: the largest magnitude it can hold."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np

from rfedge.arrays import Float32, Float64

RangeMethod = Literal["min-max", "percentile", "mse"]
RANGE_METHODS: Final[tuple[RangeMethod, ...]] = ("min-max", "percentile", "mse")
# int8 without -128: the range is symmetric.
LEVELS: Final = 127
_MSE_CANDIDATES: Final = np.linspace(0.3, 1.0, 71)


def choose_magnitude(histogram: MagnitudeHistogram, method: RangeMethod, *, percentile: float = 99.99) -> np.float32:
    """Return the largest magnitude of the range; numbers beyond it are clipped.

    "min-max" clips nothing; "percentile" holds that share of all numbers; "mse" has the least mean square of rounding and
    clipping errors.
    """
    if method == "min-max" or not histogram.peak:
        return histogram.peak
    if method == "percentile":
        share = np.cumsum(histogram.counts) / histogram.counts.sum()
        edge = histogram.edges[int(np.searchsorted(share, percentile / 100))]
        return min(np.float32(edge), histogram.peak)
    centres = histogram.edges - histogram.width / 2
    magnitudes = float(histogram.peak) * _MSE_CANDIDATES
    errors = []
    for magnitude in magnitudes:
        step = magnitude / LEVELS
        held = np.minimum(np.rint(centres / step), LEVELS) * step
        errors.append(float(histogram.counts @ (held - centres) ** 2))
    return np.float32(magnitudes[int(np.argmin(errors))])


def scale_from_amax(magnitude: np.float32) -> np.float32:
    """Return the scale of a range, magnitude / 127; 1 for a tensor that is always zero."""
    step = np.float32(np.float64(magnitude) / LEVELS)
    return step if step >= np.finfo(np.float32).tiny else np.float32(1.0)


class MagnitudeHistogram:
    """Counts |x| in equal bins, which are joined two by two when a number falls beyond the last; every count stays exact."""

    def __init__(self, num_bins: int = 4096) -> None:
        if num_bins < 2 or num_bins % 2:
            raise ValueError(f"num_bins: got {num_bins}, expected an even number of at least 2")
        self.counts = np.zeros(num_bins, np.int64)
        self.width = 0.0
        self.peak = np.float32(0.0)

    def add(self, x: Float32) -> None:
        magnitude = np.abs(x).ravel()
        peak = magnitude.max(initial=np.float32(0.0))
        self.peak = max(self.peak, peak)
        if not peak:
            self.counts[0] += magnitude.size
            return
        num_bins = len(self.counts)
        if not self.width:
            # The division below is of float32, which has no number for a bin of denormal ones.
            self.width = max(float(peak) / num_bins, float(np.finfo(np.float32).tiny))
        while peak > self.width * num_bins:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([pairs, np.zeros(num_bins - len(pairs), np.int64)])
            self.width *= 2
        # A number on the upper edge of the last bin belongs to it.
        index = np.minimum((magnitude / self.width).astype(np.int64), num_bins - 1)
        self.counts += np.bincount(index, minlength=num_bins)

    @property
    def edges(self) -> Float64:
        """Upper edge of every bin."""
        return np.arange(1, len(self.counts) + 1, dtype=np.float64) * self.width
