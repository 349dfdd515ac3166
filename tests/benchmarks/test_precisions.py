"""Every precision of `tiny`, measured with few steps: the record, what it refuses, and the tables made of it."""

from pathlib import Path

import pytest

from rfedge.benchmarks.latency.precisions import FORMS, PrecisionsPlan, measure_precisions, prepare_precisions
from rfedge.benchmarks.success.precision_records import PrecisionsReport
from rfedge.config import PRECISIONS, preset
from rfedge.errors import ArtifactError, ConfigError
from rfedge.runtimes.backends.base import RuntimeSettings
from tests.export.conftest import write_checkpoint
from tests.export.tensorrt_bundles import load_rtx
from tests.synthetic_demonstrations import write_demonstrations
from tests.tool_modules import load_tool

FEW = {"calibration_frames": 4, "parity_steps": 4, "warmup": 1, "iterations": 3, "settle_ms": 0.0}
SETTINGS = RuntimeSettings(threads=1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("precisions")
    checkpoint = write_checkpoint(root / "checkpoint", preset("tiny"))
    return {"checkpoint": checkpoint, "data": write_demonstrations(root / "data"), "folder": root / "work"}


def rendered(report: PrecisionsReport) -> tuple[str, str]:
    tables, document = load_tool("precisions_tables"), report.model_dump(mode="json")
    pages = {name: tables.fill(name, page.read_text(), document) for name, (page, _) in tables.PAGES.items()}
    for name, page in pages.items():
        assert tables.fill(name, page, document) == page, "filled once is filled for good"
    return pages["precisions"], pages["engines"]


def test_forms_are_exported_once_timed_where_they_run_and_shown(inputs: dict[str, Path]) -> None:
    plan = PrecisionsPlan(**inputs, **FEW, forms=("bf16", "fp32"), sm=None, settings=SETTINGS)
    prepared = prepare_precisions(plan)
    written = (plan.folder / "fp32" / "manifest.json").stat().st_mtime_ns
    rounds: list[tuple[int, int]] = []
    report = measure_precisions(plan, prepared, on_round=lambda done, total: rounds.append((done, total)))
    assert prepare_precisions(plan) == prepared, "what is there is not made again"
    assert (plan.folder / "fp32" / "manifest.json").stat().st_mtime_ns == written
    assert rounds[-1][0] == rounds[-1][1]
    assert PrecisionsReport.model_validate_json(report.model_dump_json()) == report
    fp32, bf16 = report.rows
    assert (fp32.name, fp32.passed, fp32.forced, fp32.speedup) == ("fp32", True, False, None)
    assert fp32.call_ms is not None
    assert fp32.call_ms.n == 3
    assert fp32.bundle_bytes > fp32.backbone_bytes > bf16.backbone_bytes > 0
    assert fp32.metrics["action_max_error"] < bf16.metrics["action_max_error"] < 0.06
    assert str(bf16.not_timed).startswith("onnxruntime has no kernel for MatMul")
    assert bf16.call_ms is None
    assert (report.engines, report.no_engines) == ((), "none were asked for")
    assert report.noise_floor.low <= report.noise_floor.value <= report.noise_floor.high
    page, engines = rendered(report)
    assert f"| fp32 | {fp32.bundle_bytes / 1e6:.1f} | {fp32.backbone_bytes / 1e6:.1f} |" in page
    assert "| met |" in page
    assert "bf16: onnxruntime has no kernel" in page
    assert "No engines were built: none were asked for" in engines


def test_a_folder_belongs_to_one_plan(inputs: dict[str, Path], tmp_path: Path) -> None:
    inputs = {**inputs, "folder": tmp_path}
    (tmp_path / "made_from.json").write_text('{"seed": 1}')
    with pytest.raises(ArtifactError, match=r"got bundles of another checkpoint_sha256, data.*seed, expected its own"):
        prepare_precisions(PrecisionsPlan(**inputs, **FEW, settings=SETTINGS))


@pytest.mark.parametrize(
    ("forms", "words"),
    [
        (("fp32", "int9"), "form: got 'int9', expected one of .*did you mean 'int8'"),
        (("int8",), "forms: got no fp32, expected what all are compared with. Add --form fp32"),
        (("fp32", "mixed-half-of-int8"), "forms: got no int8, expected the form whose error is the budget of mixed"),
    ],
)
def test_forms_that_cannot_be_measured_together_are_refused(forms: tuple[str, ...], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        PrecisionsPlan(checkpoint=tmp_path, data=tmp_path, folder=tmp_path, forms=forms)
    with pytest.raises(ConfigError, match="iterations: got 0, expected at least 1"):
        PrecisionsPlan(checkpoint=tmp_path, data=tmp_path, folder=tmp_path, iterations=0)


def test_every_precision_is_a_form() -> None:
    assert {form.precision for form in FORMS} == set(PRECISIONS)
    assert FORMS[0].name == "fp32"


@pytest.mark.slow
def test_every_form_and_its_engine(inputs: dict[str, Path]) -> None:
    plan = PrecisionsPlan(**inputs, **FEW, settings=SETTINGS)
    report = measure_precisions(plan, prepare_precisions(plan))
    assert [row.name for row in report.rows] == [form.name for form in FORMS]
    for row in report.rows:
        assert (row.call_ms is None) == (row.precision == "bf16"), row.not_timed
        assert row.forced is not row.passed
        if row.precision == "mixed" and row.passed:
            assert row.metrics["action_max_error"] <= row.budget + 0.002
    int8, every = report.row("int8"), report.row("int8-every-product")
    assert int8.metrics["action_max_error"] < every.metrics["action_max_error"]
    page, engines = rendered(report)
    assert "mixed, budget" in page
    assert "int8, every product" in page
    load_rtx()  # skips where TensorRT for RTX is not installed
    built = {row.name: row.engine for row in report.engines}
    assert built["fp32"].weights_bytes > built["fp16"].weights_bytes > built["int8"].weights_bytes > 0
    assert "int8" in built["int8"].precisions
    assert "| fp16 | " in engines
