"""`rfedge export --precision mixed`: the bundle that comes out, and requests that are refused."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from rfedge.bundle.artifact import Bundle, load_bundle
from rfedge.cli.app import app
from rfedge.errors import ArtifactError, ConfigError
from rfedge.export.mixed.plan import Budget
from rfedge.export.mixed.record import SearchRecord
from rfedge.export.options import ExportOptions
from rfedge.export.pipeline import check_export, export_checkpoint
from rfedge.export.proof import verify_parity
from rfedge.export.thresholds import STORAGE_ERROR, THRESHOLDS, mixed_thresholds
from rfedge.runtimes.backends.base import RuntimeSettings
from rfedge.runtimes.backends.ort import open_bundle
from tests.errors import raises


def options(limit: float, data: Path, **changes: object) -> ExportOptions:
    chosen = {"num_calibration_frames": 4, "num_parity_steps": 6, **changes}
    return ExportOptions(precision="mixed", data=data, budget=Budget("action_max_error", limit), **chosen)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixed")


@pytest.fixture(scope="module")
def exported(checkpoints: dict[str, Path], demonstrations: Path, folder: Path) -> Result:
    arguments = ["export", str(checkpoints["carry"]), "--output", str(folder / "bundle"), "--data", str(demonstrations)]
    arguments += ["--precision", "mixed", "--calibration-frames", "4", "--parity-steps", "6", "--json"]
    return CliRunner().invoke(app, [*arguments, "--budget", "action_error=1"])


@pytest.fixture(scope="module")
def bundle(exported: Result, folder: Path) -> Bundle:
    assert exported.exit_code == 0, exported.output
    return load_bundle(folder / "bundle")


def test_the_bundle_holds_its_evidence_and_says_what_each_block_is(bundle: Bundle) -> None:
    record = SearchRecord.model_validate_json(bundle.path("record").read_bytes())
    assert bundle.path("record").name == "mixed.json"
    assert record.budget == 1.0
    assert record.num_steps == 12
    assert record.metrics["action_max_error"] <= 1.0
    manifest = bundle.manifest
    assert manifest.precision.requested == "mixed"
    for block, precision in manifest.precision.blocks.items():
        planned = {evidence.precision for name, evidence in record.blocks.items() if f"{name}.".startswith(f"{block}.")}
        # "vision" is the patch convolution, which is always float
        if len(planned) == 1 and block != "vision":
            assert precision.kind == planned.pop(), block
    kinds = {block.precision for block in record.blocks.values()}
    assert manifest.precision.effective == ("mixed" if "int8" in kinds else "fp32")
    assert open_bundle(bundle.root, RuntimeSettings()).backbone is not None
    assert manifest.parity.thresholds == mixed_thresholds("action_max_error", 1.0)


@pytest.mark.slow
def test_a_second_budget_measures_only_what_is_new_and_keeps_what_is_float_exact(
    bundle: Bundle, checkpoints: dict[str, Path], demonstrations: Path, folder: Path
) -> None:
    first = SearchRecord.model_validate_json(bundle.path("record").read_bytes())
    again = export_checkpoint(
        checkpoints["carry"], folder / "bundle", options(0.0, demonstrations, overwrite=True, chart=folder / "chart.png")
    )
    second = SearchRecord.model_validate_json(again.path("record").read_bytes())
    assert {name: block.metrics for name, block in first.blocks.items()} == {
        name: block.metrics for name, block in second.blocks.items()
    }
    assert second.num_reused >= len(first.blocks)
    assert {found.kind for found in again.manifest.precision.blocks.values()} == {"fp32"}
    assert again.manifest.parity.passed
    assert again.manifest.parity.metrics["action_max_error"] <= STORAGE_ERROR
    assert (folder / "chart.png").stat().st_size > 1000
    assert sorted(path.name for path in folder.iterdir()) == ["bundle", "bundle.search", "chart.png"]
    verified = verify_parity(again, checkpoints["carry"], data=demonstrations, num_steps=4, seed=1)
    assert verified.manifest.parity.passed
    assert load_bundle(folder / "bundle").manifest == again.manifest


def test_the_budget_replaces_the_gates_on_the_action() -> None:
    largest = mixed_thresholds("action_max_error", 0.01)
    assert largest["action_max_error"] == 0.01 + STORAGE_ERROR
    assert "action_p99_error" not in largest
    mean = mixed_thresholds("action_mean_error", 0.001)
    assert mean == {**THRESHOLDS["int8"], "action_mean_error": 0.001 + STORAGE_ERROR}


def test_requests_that_contradict_themselves_are_refused(
    checkpoints: dict[str, Path], demonstrations: Path, tmp_path: Path
) -> None:
    cases = [
        (ExportOptions(precision="mixed", data=demonstrations), "no --budget"),
        (ExportOptions(precision="int8", data=demonstrations, budget=Budget("action_max_error", 1.0)), "a --budget..."),
        (ExportOptions(precision="mixed", budget=Budget("action_max_error", 1.0)), "no demonstrations"),
        (ExportOptions(precision="fp32", chart=tmp_path / "chart.png"), "precision fp32"),
    ]
    for wrong, got in cases:
        with raises(ConfigError, got=got):
            check_export(checkpoints["carry"], tmp_path / "bundle", wrong)
    with raises(ArtifactError, got="an existing path"):
        check_export(checkpoints["carry"], tmp_path, options(1.0, demonstrations))


def test_the_command_line_prints_the_evidence_beside_the_manifest(exported: Result, bundle: Bundle) -> None:
    assert json.loads(exported.stdout)["precision"]["requested"] == "mixed"
    assert "int8 in one block alone" in exported.stderr
    assert "chart in" in exported.stderr
    assert (bundle.root.parent / "bundle.search" / "sensitivity.png").exists()


def test_a_wrong_budget_is_refused_before_any_work(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["export", str(checkpoints["carry"]), "--output", str(tmp_path / "b"), "--precision", "mixed"]
    result = CliRunner().invoke(app, [*arguments, "--budget", "0.01"])
    assert isinstance(result.exception, ConfigError)
    assert "--budget: got '0.01', expected NAME=NUMBER" in str(result.exception)
    assert not list(tmp_path.iterdir())
