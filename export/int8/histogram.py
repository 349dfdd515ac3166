"""A histogram of magnitudes that never needs to know the largest one beforehand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


class MagnitudeHistogram:
    """Counts |x| in `num_bins` equal bins; when a number falls beyond the last one, bins are joined two by two.

    Memory does not grow with the numbers counted. Joining is exact: every count stays in the bin that contains it.
    """

    def __init__(self, num_bins: int = 4096) -> None:
        if num_bins < 2 or num_bins % 2:
            raise ValueError(f"num_bins: got {num_bins}, expected an even number of at least 2")
        self.counts = np.zeros(num_bins, np.int64)
        self.width = 0.0
        self.peak = np.float32(0.0)

    def add(self, x: Float32) -> None:
        """Count every number of `x`; all must be finite."""
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
    def edges(self) -> npt.NDArray[np.float64]:
        """Upper edge of every bin."""
        return np.arange(1, len(self.counts) + 1, dtype=np.float64) * self.width
