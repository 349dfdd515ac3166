"""Does the gripper command say what the fingers did? A sign or a threshold that is wrong opens where a hand closed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from rfedge.data.frames import Float64Array

# Fingers follow late; the lag that fits best counts. A longer one would meet the next grasp.
_LONGEST_LAG_S: Final = 0.5
# Less than this is play of the fingers or noise, not a grasp.
_MOVED_M: Final = 0.015
_FEWEST_FRAMES: Final = 8


@dataclass(frozen=True, slots=True)
class GripFit:
    # of the command (1 open) with the width at the lag where it is strongest; NaN where one never changes
    correlation: float
    # opened, closed: whether the command was ever 1, ever -1
    opened: bool
    closed: bool
    # drop_m, rise_m: the most that the fingers closed, and opened, within one run
    drop_m: float
    rise_m: float

    @property
    def is_inverted(self) -> bool:
        """The fingers do the opposite of the command."""
        return max(self.drop_m, self.rise_m) > _MOVED_M and self.correlation < -0.5

    @property
    def never_crosses(self) -> bool:
        """The command is the same in every frame, and the fingers went the other way."""
        always_open, always_closed = self.opened and not self.closed, self.closed and not self.opened
        return (always_open and self.drop_m > _MOVED_M) or (always_closed and self.rise_m > _MOVED_M)


class GripSums:
    """Sums over any number of runs of consecutive frames."""

    def __init__(self, frequency_hz: float) -> None:
        self._num_lags = max(round(frequency_hz * _LONGEST_LAG_S), 1) + 1
        # One row a lag: count and the sums of c, w, c^2, c w, w^2 for command c and width w.
        self._sums = np.zeros((self._num_lags, 6))
        self._opened = self._closed = False
        self._drop_m = self._rise_m = 0.0

    def add(self, commands: Float64Array, widths_m: Float64Array) -> None:
        """Add (T,) commands, or numbers that grow with the wish to open, and (T,) measured widths in metres."""
        self._opened |= bool((commands > 0).any())
        self._closed |= bool((commands <= 0).any())
        self._drop_m = max(self._drop_m, float((np.maximum.accumulate(widths_m) - widths_m).max(initial=0.0)))
        self._rise_m = max(self._rise_m, float((widths_m - np.minimum.accumulate(widths_m)).max(initial=0.0)))
        for lag in range(min(self._num_lags, len(commands))):
            c, w = commands[: len(commands) - lag], widths_m[lag:]
            self._sums[lag] += (len(c), c.sum(), w.sum(), (c * c).sum(), (c * w).sum(), (w * w).sum())

    def fit(self) -> GripFit:
        """Return what all runs together say."""
        count, c, w, cc, cw, ww = self._sums.T
        usable = count >= max(_FEWEST_FRAMES, 0.25 * count[0])
        spread = np.maximum(count * cc - c * c, 0.0) * np.maximum(count * ww - w * w, 0.0)
        usable &= spread > 1e-9 * np.maximum(count * cc * count * ww, 1e-30)
        if not usable.any():
            return GripFit(np.nan, self._opened, self._closed, self._drop_m, self._rise_m)
        values = np.where(usable, (count * cw - c * w) / np.sqrt(np.where(usable, spread, 1.0)), 0.0)
        strongest = float(values[np.abs(values).argmax()])
        return GripFit(strongest, self._opened, self._closed, self._drop_m, self._rise_m)
