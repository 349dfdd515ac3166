"""Ablations: every variant starts from the same checkpoint, is trained by its own flags and run on the same starts."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rfedge.benchmarks.report.build import build_report
from rfedge.benchmarks.studies.ablations import VARIANTS, AblationPlan, AblationsReport, choose, main, measure_ablations
from rfedge.cli.app import app
from rfedge.errors import ArtifactError, ConfigError
from rfedge.model import load_checkpoint
from tests.benchmarks.report_page import Page
from tests.benchmarks.report_records import head, success_report
from tests.synthetic_demonstrations import write_demonstrations


def test_variants_are_chosen_by_name() -> None:
    assert [variant.name for variant in choose("lstm,data-10")] == ["lstm", "data-10"]
    with pytest.raises(
        ConfigError, match=r"variant: got 'rnn', expected some of lstm, gpt, .*data-10, .*\. Leave --variants out"
    ):
        choose("lstm,rnn")


def test_a_failed_command_ends_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nowhere = tmp_path / "nowhere"
    assert main(["--start", str(nowhere), "--data", str(nowhere), "--output", str(tmp_path / "out")]) == 2
    assert "rfedge train --config: got exit status 2, expected 0" in capfd.readouterr().err


def test_the_page_shows_what_each_part_is_worth(tmp_path: Path) -> None:
    success = success_report({variant.name: "fp32" for variant in VARIANTS}, (4,))
    variants = tuple(
        {"name": v.name, "change": v.change, "flags": v.flags, "steps": 7, "seconds": 360.0, "held_out_loss": None}
        for v in VARIANTS
    )
    report = AblationsReport.model_validate(
        {**head(), "training": ("--minutes", "6"), "variants": variants, "success": success}
    )
    report.write(tmp_path / "ablations.json")
    page = Page(build_report((tmp_path,)).html)
    (table,) = [rows for caption, rows in page.tables.items() if "6 minutes of training" in caption]
    assert [row[0] for row in table[1:]] == [variant.name for variant in VARIANTS]
    chains = success.rows[-1].chains
    assert table[-1][1:] == [VARIANTS[-1].change, "7", "- [1]", "90 % [88, 92], n = 680", table[-1][-1]]
    assert table[-1][-1].startswith(f"{chains.average_length.value:.2f} [")


@pytest.mark.slow
def test_variants_are_trained_exported_and_run_and_a_second_run_trains_nothing_again(tmp_path: Path) -> None:
    data = write_demonstrations(tmp_path / "data")
    start = tmp_path / "start"
    trained = CliRunner().invoke(
        app, ["train", "--config", "tiny", "--data", str(data), "--output", str(start), "--steps", "1", "--batch-size", "2"]
    )
    assert trained.exit_code == 0, trained.output
    plan = AblationPlan(
        start=start / "checkpoint",
        data=data,
        output=tmp_path / "ablations",
        training=("--steps", "2", "--batch-size", "2", "--chunk-size", "2", "--frame-stride", "2"),
        success=("--execute-steps", "2", "--num", "0", "--single-tasks", "1", "--tasks", "open_drawer", "--max-steps", "8"),
        variants=choose("lstm,gpt,mlp-history,data-10"),
    )
    report = measure_ablations(plan)
    assert [variant.steps for variant in report.variants] == [2, 2, 2, 2]
    assert [row.policy for row in report.success.rows] == ["lstm", "gpt", "mlp-history", "data-10"]
    heads = [load_checkpoint(plan.output / name / "checkpoint").config for name in ("lstm", "gpt", "mlp-history")]
    assert [(one.head.kind, one.media_frames) for one in heads] == [("lstm", 1), ("gpt", 1), ("mlp", 6)]
    again = measure_ablations(plan)
    assert [(one.steps, one.held_out_loss) for one in again.variants] == [
        (one.steps, one.held_out_loss) for one in report.variants
    ]
    with pytest.raises(ArtifactError, match=r"rfedge train --config: got exit status 2, expected 0"):
        measure_ablations(replace(plan, training=("--steps", "2", "--batch-size", "0"), output=tmp_path / "other"))
