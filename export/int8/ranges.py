"""From a histogram of magnitudes to the one number that a symmetric range is: the largest magnitude it can hold."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np

from rfedge.errors import ConfigError, did_you_mean
from rfedge.export.int8.histogram import MagnitudeHistogram

RangeMethod = Literal["min-max", "percentile", "mse"]
RANGE_METHODS: Final[tuple[RangeMethod, ...]] = ("min-max", "percentile", "mse")
# int8 without -128: the range is symmetric.
LEVELS: Final = 127
_MSE_CANDIDATES: Final = np.linspace(0.3, 1.0, 71)


def check_range_method(name: str) -> RangeMethod:
    """Return `name` as a method.

    Raises:
        ConfigError: there is no such method.
    """
    for method in RANGE_METHODS:
        if name == method:
            return method
    raise ConfigError("ranges", got=repr(name), expected=did_you_mean(name, RANGE_METHODS), remedy="Choose one of these.")


def choose_magnitude(histogram: MagnitudeHistogram, method: RangeMethod, *, percentile: float = 99.99) -> np.float32:
    """Return the largest magnitude of the range; numbers beyond it are clipped.

    Args:
        histogram: of the tensor over the calibration frames.
        method: "min-max" clips nothing; "percentile" holds that share of all numbers; "mse" has the least mean square of
            rounding and clipping errors.
        percentile: share in percent.
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
