"""Published numbers on CALVIN, quoted and never measured here: what each paper printed, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from rfedge.records.record import Record

__all__ = ["QuotedBaselines", "QuotedRow", "QuotedSource", "quoted_baselines"]

_FILE: Final = Path(__file__).with_name("quoted_baselines.json")


class QuotedSource(Record):
    """A paper."""

    title: str
    url: str


class QuotedRow(Record):
    """One printed row.

    Attributes:
        training: scenes; Full is with vision data that has no language, Lang is the part that has.
        test: scene, and the instructions where they are not those of the benchmark.
        rates: share of 1000 chains with at least 1 to 5 tasks solved in a row; None where the paper prints the length alone.
        average_length: as printed; the sum of the rates up to their rounding.
        llm_gflops: of the language model for an action, as printed.
        source: key of `QuotedBaselines.sources`.
        place: table.
    """

    method: str
    training: str
    test: str
    rates: tuple[float, float, float, float, float] | None = None
    average_length: float
    llm_gflops: float | None = None
    source: str
    place: str


class QuotedBaselines(Record):
    """The whole file."""

    format: Literal["rfedge-quoted-baselines"] = "rfedge-quoted-baselines"
    schema_version: int = 1
    sources: dict[str, QuotedSource]
    rows: tuple[QuotedRow, ...]


def quoted_baselines() -> QuotedBaselines:
    """Read the file that comes with the package."""
    return QuotedBaselines.model_validate_json(_FILE.read_bytes())
