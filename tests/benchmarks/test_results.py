"""The committed results are what today's models would write, byte for byte."""

import json
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from rfedge.benchmarks.latency.environment_speed import EnvironmentSpeedReport
from rfedge.benchmarks.latency.isolated import IsolatedReport
from rfedge.benchmarks.latency.run import LatencyReport
from rfedge.benchmarks.latency.tune import TuneReport
from rfedge.benchmarks.studies.ablations import AblationsReport
from rfedge.benchmarks.studies.full_size_engines import EnginesReport
from rfedge.benchmarks.success.chains import ChainReport
from rfedge.benchmarks.success.expert_success import ExpertSuccessReport
from rfedge.benchmarks.success.looks import LooksReport
from rfedge.benchmarks.success.report import SuccessReport
from rfedge.benchmarks.success.sweep import SweepReport
from rfedge.records.machine import Measurement, provenance

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
DEMO = RESULTS / "demo_playtable-small_cpu_202611.json"
REPORTS: dict[str, type[BaseModel]] = {
    "rfedge-ablations": AblationsReport,
    "rfedge-chains": ChainReport,
    "rfedge-environment-speed": EnvironmentSpeedReport,
    "rfedge-expert-success": ExpertSuccessReport,
    "rfedge-full-size-engines": EnginesReport,
    "rfedge-latency": LatencyReport,
    "rfedge-looks": LooksReport,
    "rfedge-peers": IsolatedReport,
    "rfedge-success": SuccessReport,
    "rfedge-sweep": SweepReport,
    "rfedge-tune": TuneReport,
}


def documents() -> list[tuple[Path, type[BaseModel]]]:
    formats = {path: json.loads(path.read_text()).get("format") for path in sorted(RESULTS.glob("*.json"))}
    return [(path, REPORTS[name]) for path, name in formats.items() if name in REPORTS]


def test_every_kind_of_measurement_but_latency_has_a_committed_result() -> None:
    assert {model for _, model in documents()} >= {ChainReport, EnvironmentSpeedReport, ExpertSuccessReport}


@pytest.mark.parametrize(("path", "model"), documents(), ids=lambda value: getattr(value, "stem", ""))
def test_a_committed_result_comes_back_byte_for_byte(path: Path, model: type[BaseModel]) -> None:
    assert model.model_validate_json(path.read_bytes()).model_dump_json(indent=2) + "\n" == path.read_text()


def test_the_latency_report_inside_the_demo_comes_back_byte_for_byte() -> None:
    document = json.loads(DEMO.read_text())
    report = LatencyReport.model_validate(document["latency"])
    document["latency"] = report.model_dump(mode="json")
    assert json.dumps(document, indent=1) + "\n" == DEMO.read_text()


def test_the_cpu_form_is_faster_than_at_685b4aa_beyond_the_noise_floor() -> None:
    path = RESULTS / "latency_int8-forms_playtable-small_cpu_202611.json"
    report = LatencyReport.model_validate_json(path.read_bytes())
    before, now, _ = report.variants
    assert (before.source, now.source) == ("bundle-685b4aa", "bundle-now")
    ratio = before.per_call_ms["total"].p50 / now.per_call_ms["total"].p50
    assert report.noise_floor.high < 1.05
    assert round(ratio, 2) == 1.09
    assert round(before.per_call_ms["backbone"].p50 / now.per_call_ms["backbone"].p50, 2) == 1.10
    text = " ".join((RESULTS.parents[1] / "docs" / "adr" / "0019-cpu-form.md").read_text().split())
    assert f"{before.per_call_ms['total'].p50:.2f} and {now.per_call_ms['total'].p50:.2f} ms" in text


def test_tuning_found_nothing_faster_than_the_default_for_the_small_policy_here() -> None:
    report = TuneReport.model_validate_json((RESULTS / "tune_playtable-small_cpu_202611.json").read_bytes())
    assert report.choice.noise_floor.high < 1.05
    assert not report.not_tried
    assert {duel.verdict for duel in report.duels} == {"noise floor", "not faster"}
    assert report.choice.backend == "onnxruntime"


def test_a_result_refuses_a_field_that_nobody_declared() -> None:
    path, model = documents()[0]
    document = json.loads(path.read_text())
    with pytest.raises(ValidationError, match="surprise"):
        model.model_validate({**document, "surprise": 1})


def test_a_measurement_begins_with_what_it_is_and_where_it_was_taken() -> None:
    taken = Measurement(format="x", schema_version=1, **provenance())
    assert list(taken.model_dump()) == ["format", "schema_version", "measured_at", "commit", "machine", "versions"]
    assert taken.measured_at.endswith("+00:00")
    assert taken.versions["python"]
