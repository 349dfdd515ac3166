"""Do the actions of demonstrations say what arm and fingers did? Measured motion is regressed on commanded motion.

A wrong unit, sign or axis does not crash: it makes a policy that moves 2.5 times too far. The arm's own poses know better.
Motion is summed over about a third of a second, because an arm lags behind its commands, and compared at the lag that
explains it best; translation and rotation have factors of their own, and so has every axis. A gripper command whose sign or
threshold is wrong opens where a hand closed: it is correlated with the width of the fingers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from rfedge.data.frames import Float64Array

AXES: Final = ("x", "y", "z", "roll", "pitch", "yaw")
_GROUPS: Final = {"translation": slice(0, 3), "rotation": slice(3, 6)}
_WINDOW_S: Final = 1.0 / 3.0
_LONGEST_LAG_S: Final = 0.2
_FEWEST_WINDOWS: Final = 5
# Root mean square per window below which a group stands still: 0.5 mm, 3 mrad.
_STILL: Final = {"translation": 5e-4, "rotation": 3e-3}
# Share of its group's motion below which an axis says nothing of its own.
_OWN_SHARE: Final = 0.05
_EXPLAINED: Final = 0.5
_CLEAR: Final = 0.9
# Fingers follow late; the lag that fits best counts. A longer one would meet the next grasp.
_LONGEST_GRIP_LAG_S: Final = 0.5
# Less than this is play of the fingers or noise, not a grasp.
_MOVED_M: Final = 0.015
_FEWEST_FRAMES: Final = 8


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Factors that pass: (lowest, highest) where commands explain nearly all of the motion, and where less of it.

    A clear relation has little to do with an arm's lag: then a factor is a unit. Otherwise an arm that takes each command
    from where it is, as a compliant controller does, may well come half as far.
    """

    clear: tuple[float, float] = (0.67, 1.5)
    loose: tuple[float, float] = (0.33, 2.0)

    def passes(self, factor: float, explained: float) -> bool:
        low, high = self.clear if explained >= _CLEAR else self.loose
        return explained < _EXPLAINED or low <= factor <= high


@dataclass(frozen=True, slots=True)
class MotionFit:
    group: str
    factor: float  # measured motion per commanded motion, all axes together
    explained: float  # share of the measured motion that `factor` times the commanded one explains, 0 to 1
    # axis_factors, axis_explained: the same per axis; NaN where an axis hardly moved
    axis_factors: tuple[float, float, float]
    axis_explained: tuple[float, float, float]
    lag: int  # frames by which the motion follows its commands

    def disagreement(self, tolerance: Tolerance) -> tuple[str, list[float], int] | None:
        """Return which axes do not pass, as text, their factors and how many they are, 0 for all together; else None."""
        pairs = zip(self.axis_factors, self.axis_explained, strict=True)
        wrong = [axis for axis, (factor, share) in enumerate(pairs) if not tolerance.passes(factor, share)]
        if not wrong and tolerance.passes(self.factor, self.explained):
            return None
        axes = " and ".join(AXES[_GROUPS[self.group].start + axis] for axis in wrong) or "all axes"
        factors = [self.axis_factors[axis] for axis in wrong] or [self.factor]
        return f"measured {self.group} ({axes})", factors, len(wrong)


class MotionSums:
    """Sums of products of commanded and measured motion over any number of episodes."""

    def __init__(self, frequency_hz: float) -> None:
        self._window = max(round(frequency_hz * _WINDOW_S), 1)
        self._num_lags = max(round(frequency_hz * _LONGEST_LAG_S), 1) + 1
        # One row a lag: sums of commanded^2, commanded * measured and measured^2, over the same windows.
        self._sums = np.zeros((self._num_lags, 3, 6))
        self._num_windows = np.zeros(self._num_lags, dtype=np.int64)
        self._moved = np.zeros(6)
        self._asked = np.zeros(6)

    def add(self, commanded: Float64Array, measured: Float64Array, valid: npt.NDArray[np.bool_] | None = None) -> None:
        """Add frames of commanded and measured motion (T, 6), m and rad; windows with a frame outside `valid` (T,) are left
        out.
        """
        total = len(measured)
        self._moved += np.abs(measured).sum(axis=0)
        self._asked += np.abs(commanded).sum(axis=0)
        window = min(self._window, max(total // 2, 1))
        for lag in range(min(self._num_lags, total - window + 1)):
            length = total - lag
            asked = _windows(commanded[:length], window)
            came = _windows(measured[lag:], window)
            if valid is not None:
                kept = _windows(valid[:length, None].astype(np.float64), window)[:, 0] > window - 0.5
                asked, came = asked[kept], came[kept]
            self._sums[lag] += np.stack(((asked * asked).sum(0), (asked * came).sum(0), (came * came).sum(0)))
            self._num_windows[lag] += len(asked)

    def moved(self) -> bool:
        """Return whether the arm moved at all: 1 mm or 5 mrad, all frames together."""
        return bool(self._moved[:3].sum() > 1e-3 or self._moved[3:].sum() > 5e-3)

    def asked(self) -> bool:
        return bool(self._asked[:3].sum() > 1e-3 or self._asked[3:].sum() > 5e-3)

    def fits(self) -> list[MotionFit]:
        """Return the regression of every group that was both commanded and measured to move."""
        return [fit for group in _GROUPS if (fit := self._fit(group)) is not None]

    def _fit(self, group: str) -> MotionFit | None:
        own = _GROUPS[group]
        usable = self._num_windows >= _FEWEST_WINDOWS
        if not usable.any():
            return None
        sums = self._sums[:, :, own]
        commanded, matmul, measured = (sums[:, row].sum(axis=-1) for row in range(3))
        explained = np.where(usable, _explained(commanded, matmul, measured), -1.0)
        lag = int(explained.argmax())
        still = _STILL[group] ** 2 * self._num_windows[lag]
        if commanded[lag] < still or measured[lag] < still:
            return None
        xx, xy, yy = sums[lag]
        has_share = (xx >= _OWN_SHARE * commanded[lag]) | (yy >= _OWN_SHARE * measured[lag])
        counts = has_share & (yy >= 0.1 * still) & (xx > 0.0)
        factors = np.where(counts, xy / np.maximum(xx, 1e-300), np.nan)
        shares = np.where(counts, _explained(xx, xy, yy), 0.0)
        return MotionFit(
            group,
            float(matmul[lag] / commanded[lag]),
            float(explained[lag]),
            (float(factors[0]), float(factors[1]), float(factors[2])),
            (float(shares[0]), float(shares[1]), float(shares[2])),
            lag,
        )


def _windows(rows: Float64Array, size: int) -> Float64Array:
    """Return the sums of every `size` consecutive rows, (T - size + 1, n)."""
    path = np.concatenate((np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0)))
    return np.asarray(path[size:] - path[:-size])


def _explained(xx: Float64Array, xy: Float64Array, yy: Float64Array) -> Float64Array:
    return np.asarray(xy * xy / np.maximum(xx * yy, 1e-300))


# --- the gripper --------------------------------------------------------------------------------------------------------
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
    def moved_m(self) -> float:
        return max(self.drop_m, self.rise_m)

    @property
    def command(self) -> str:
        """Name of the command where there is but one."""
        return "open" if self.opened else "close"

    @property
    def is_inverted(self) -> bool:
        """The fingers do the opposite of the command."""
        return self.moved_m > _MOVED_M and self.correlation < -0.5

    @property
    def never_crosses(self) -> bool:
        """The command is the same in every frame, and the fingers went the other way."""
        always_open, always_closed = self.opened and not self.closed, self.closed and not self.opened
        return (always_open and self.drop_m > _MOVED_M) or (always_closed and self.rise_m > _MOVED_M)


class GripSums:
    """Sums over any number of runs of consecutive frames."""

    def __init__(self, frequency_hz: float) -> None:
        self._num_lags = max(round(frequency_hz * _LONGEST_GRIP_LAG_S), 1) + 1
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
