import pytest

from rfedge.benchmarks.studies.head_speed import HeadSpeedReport, assert_near_the_limit, measure_head
from rfedge.config import preset
from rfedge.errors import GateError
from rfedge.records.statistics import Ratio


@pytest.fixture(scope="module")
def report() -> HeadSpeedReport:
    return measure_head(preset("tiny"), threads=1, rounds=3)


def test_every_way_to_run_a_head_is_timed(report: HeadSpeedReport) -> None:
    names = [row.name for row in report.rows]
    assert names == ["carry", "carry int8", "window", "window int8", "replay", "replay int8"]
    assert report.row("carry").weight_bytes == 4 * report.row("carry int8").weight_bytes
    assert [row.name for row in report.rows if row.to_carry is None] == ["carry", "carry int8"]
    assert report.bandwidth_bytes_per_s > 1e8
    assert all(row.call_ms.n == 3 for row in report.rows)
    assert HeadSpeedReport.model_validate_json(report.model_dump_json()) == report


def test_a_missed_gate_names_the_figure(report: HeadSpeedReport) -> None:
    far = Ratio(value=2.0, low=1.9, high=2.1)
    rows = tuple(row.model_copy(update={"to_limit": far, "to_carry": far if row.to_carry else None}) for row in report.rows)
    slow = report.model_copy(update={"rows": rows})
    assert_near_the_limit(slow, carry=None, window=None)
    assert_near_the_limit(slow, carry=2.5, window=2.5)
    with pytest.raises(GateError, match=r"^head carry: got 2.00x the time of its reads, expected <= 1.5x"):
        assert_near_the_limit(slow, carry=1.5, window=3)
    with pytest.raises(GateError, match=r"^head window: got 2.00x carry, expected <= 1.5x"):
        assert_near_the_limit(slow, carry=3, window=1.5)
