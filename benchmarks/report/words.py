"""How numbers are written: the same digits everywhere, and nothing that a record does not hold."""

from __future__ import annotations

from rfedge.benchmarks.report.document import Cell, missing
from rfedge.records.statistics import Mean, Proportion, Ratio, Summary

__all__ = ["bytes_mb", "commit", "count", "duration", "length", "milliseconds", "percentiles", "plain", "ratio", "share"]


def length(mean: Mean) -> str:
    """Return a mean with its interval, such as "2.31 [2.02, 2.60]"."""
    return f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"


def share(proportion: Proportion | Ratio) -> str:
    """Return a share with its interval, such as "0.850 [0.796, 0.892]"."""
    return f"{proportion.value:.3f} [{proportion.low:.3f}, {proportion.high:.3f}]"


def ratio(value: Ratio | None, reason: str) -> Cell:
    """Return a speed-up with its interval, such as "4.62x [4.55, 4.70]"."""
    return missing(reason) if value is None else Cell(f"{value.value:.2f}x [{value.low:.2f}, {value.high:.2f}]")


def milliseconds(value: float) -> str:
    """Return milliseconds with as many digits as are worth reading: 0.0125, 1.25, 12.5 or 125."""
    return (
        f"{value:.4f}"
        if value < 0.1
        else f"{value:.2f}"
        if value < 10
        else f"{value:.1f}"
        if value < 100
        else f"{value:.0f}"
    )


def percentiles(summary: Summary) -> tuple[str, str, str]:
    """Return p50, p90 and p99 in milliseconds."""
    return milliseconds(summary.p50), milliseconds(summary.p90), milliseconds(summary.p99)


def bytes_mb(value: int | None, reason: str) -> Cell:
    """Return decimal megabytes."""
    return missing(reason) if value is None else Cell(f"{value / 1e6:.1f}")


def plain(value: float | None, digits: int, reason: str) -> Cell:
    """Return a number with so many digits behind the point."""
    return missing(reason) if value is None else Cell(f"{value:.{digits}f}")


def duration(seconds: float) -> str:
    """Return seconds, minutes or hours."""
    return (
        f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    )


def commit(value: str | None) -> Cell:
    """Return the first twelve letters, with "-dirty" where the source was changed."""
    if value is None:
        return missing("measured outside a checkout")
    return Cell(value[:12] + ("-dirty" if value.endswith("-dirty") else ""))


def count(number: int, thing: str) -> str:
    """Return a number with its noun.

    >>> count(1, "thread"), count(2, "thread")
    ('1 thread', '2 threads')
    """
    return f"{number} {thing}{'' if number == 1 else 's'}"
