"""A precision for each stage: by whose gates the whole is judged, and what is refused before any work."""

import itertools
from pathlib import Path

from rfedge.config import PRECISIONS
from rfedge.errors import ConfigError
from rfedge.export.options import ExportOptions
from rfedge.export.pipeline import check_export
from rfedge.export.thresholds import FROM_STRICTEST, THRESHOLDS, loosest_thresholds
from tests.errors import raises

MIXED = "vision=fp16,decoder=int8"


def test_each_precision_allows_at_least_what_the_stricter_one_does() -> None:
    assert {*FROM_STRICTEST} == {*PRECISIONS} - {"mixed"}
    for strict, loose in itertools.pairwise(FROM_STRICTEST):
        for metric, limit in THRESHOLDS[strict].items():
            other = THRESHOLDS[loose][metric]
            assert other <= limit if metric.startswith("min_") else other >= limit, (strict, loose, metric)
    assert loosest_thresholds(["fp16", "int8"]) == loosest_thresholds(["int8", "fp32"]) == "int8"
    assert loosest_thresholds(["bf16", "int8"]) == "bf16"
    assert loosest_thresholds(["int4-weight", "int8-weight"]) == "int4-weight"


def test_what_two_stages_cannot_be_is_refused_before_any_work(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for precision, stages, parts in (
        ("fp32", "tow", {"subject": "--stages", "got": "'tow'", "expected": "one of one, two (did you mean 'two'?)"}),
        ("mixed", "two", {"expected": "...mixed is searched over one graph"}),
        ("vision=mixed,decoder=int8", "two", {"expected": "...mixed is searched over one graph"}),
        (MIXED, "one", {"got": f"'{MIXED}'", "expected": "one precision for a backbone in one graph"}),
        ("vision=fp16", "two", {"expected": "each of vision and decoder once..."}),
        ("vision=fp16,decoder=int8,head=int8", "two", {"expected": "each of vision and decoder once..."}),
        ("vision=fp16,vision=int8", "two", {"expected": "each of vision and decoder once..."}),
        ("vision=fp16,decoder=int9", "two", {"expected": "...(did you mean 'int8'?)"}),
        (MIXED, "two", {"subject": f"precision {MIXED}", "got": "no demonstrations"}),
    ):
        with raises(ConfigError, **parts):
            check_export(checkpoints["window"], tmp_path / "bundle", ExportOptions(precision=precision, stages=stages))
