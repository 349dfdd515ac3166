"""One checkpoint in every precision: what is exported once, what PyTorch runs, and what one row says of it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rfedge.benchmarks.success.precision_bundles import (
    TABLE_PRECISIONS,
    parse_table_precisions,
    prepare_policies,
    rows_of,
)
from rfedge.benchmarks.success.run import run_success
from rfedge.benchmarks.success.sweep import SweepReport
from rfedge.bundle.artifact import load_bundle
from rfedge.cli.app import app
from rfedge.config import preset
from rfedge.errors import ArtifactError, ConfigError
from rfedge.export.mixed.plan import Budget
from rfedge.export.options import ExportOptions
from rfedge.export.pipeline import export_checkpoint
from rfedge.model import checkpoint_sha256
from rfedge.runtimes.rollout.policy_source import TorchPolicy
from tests.benchmarks.joint_world import joint_chains
from tests.benchmarks.success_plans import plan_of
from tests.errors import raises
from tests.export.conftest import write_checkpoint
from tests.synthetic_demonstrations import write_demonstrations

CHAINS = joint_chains(2)


def trained(path: Path, seed: int = 0) -> Path:
    config = preset("tiny")
    decoder = config.decoder.model_copy(update={"text_length": 80})
    return write_checkpoint(path, config.model_copy(update={"decoder": decoder, "chunk_size": 2}), seed=seed)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("trained") / "checkpoint")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def fp32(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fp32") / "bundle"
    export_checkpoint(checkpoint, path, ExportOptions(precision="fp32", num_parity_steps=2))
    return path


def test_fp32_is_always_the_first() -> None:
    assert parse_table_precisions("all") == TABLE_PRECISIONS
    assert parse_table_precisions("nf4, int8") == ("fp32", "int8", "nf4")
    with raises(ConfigError, "--precisions", got="'int5'", expected="one of ...did you mean 'int8'..."):
        parse_table_precisions("int5")
    with raises(ConfigError, got="int8 twice"):
        parse_table_precisions("int8,int8")


@pytest.mark.slow
def test_what_is_missing_is_exported_once(checkpoint: Path, data: Path, fp32: Path, tmp_path: Path) -> None:
    asked: list[str] = []

    def demonstrations() -> tuple[Path, str]:
        asked.append("data")
        return data, "of a test"

    how = Budget("action_max_error", 0.05), demonstrations
    names, folder = ("fp32", "bf16", "int8-weight", "nf4"), tmp_path / "bundles"
    found = prepare_policies(checkpoint, folder, names, *how, shipped=fp32)
    assert found == {
        "fp32": fp32,  # the one that is shipped
        "bf16": TorchPolicy(checkpoint, "bfloat16"),
        "int8-weight": folder / "int8-weight",
        "nf4": TorchPolicy(checkpoint, weights="nf4"),
    }
    manifest = load_bundle(folder / "int8-weight").manifest
    assert manifest.source == {
        "checkpoint_sha256": checkpoint_sha256(checkpoint),
        "name": "tiny",
        "demonstrations": "of a test",
    }
    assert prepare_policies(checkpoint, folder, names, *how, shipped=fp32) == found
    assert asked == ["data"]
    other = trained(tmp_path / "other", seed=3)
    with raises(ArtifactError, "bundle ...int8-weight", got="one of checkpoint ..."):
        prepare_policies(other, folder, ("int8-weight",), *how)


def test_several_checkpoints_are_told_apart() -> None:
    found = {"fp32": Path("a"), "nf4": TorchPolicy(Path("c"), weights="nf4"), "int8": Path("b")}
    assert rows_of({"one": found})["labels"] == ("fp32", "int8", "nf4")
    assert rows_of({"one": found, "two": found})["labels"] == (
        *("one fp32", "one int8", "two fp32", "two int8"),
        *("one nf4", "two nf4"),
    )


def test_a_checkpoint_is_a_row_like_any_other(checkpoint: Path, fp32: Path, tmp_path: Path) -> None:
    plan = plan_of((fp32,), torch=(TorchPolicy(checkpoint, "bfloat16"),), pairing="same-loop", max_steps=6)
    report = run_success(plan, CHAINS, tmp_path / "run")
    assert [(row.name, row.paired and row.paired.reference) for row in report.rows] == [
        ("fp32 k1 D evaluation", None),
        ("fp32 k2 D evaluation", None),
        ("bf16 k1 D evaluation", "fp32 k1 D evaluation"),
        ("bf16 k2 D evaluation", "fp32 k2 D evaluation"),
    ]
    bundle, torch = report.policies
    assert (bundle.backend, torch.backend) == (None, "torch")
    assert torch.provenance["checkpoint_sha256"] == bundle.provenance["checkpoint_sha256"]
    assert torch.manifest_sha256 == checkpoint_sha256(checkpoint)
    assert torch.size_bytes < 0.6 * bundle.size_bytes, "of the weights in memory"
    first = (tmp_path / "run" / "chains" / "bf16-k1-D-evaluation" / "chains.jsonl").read_text().splitlines()[0]
    assert json.loads(first)["arguments"]["agent"]["torch_dtype"] == "bfloat16"
    again = run_success(plan, CHAINS, tmp_path / "run")
    assert again == report, "a second call runs nothing"


def test_one_command_makes_the_table(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    output = tmp_path / "table"
    few = ("--num", "0", "--single-tasks", "1", "--tasks", "open_drawer", "--max-steps", "3", "--iterations", "4")
    command = ["bench", "success", str(checkpoint), "--precisions", "bf16", "--output", str(output), "--json", *few]
    refused = CliRunner().invoke(app, command)
    assert "no --data" in str(refused.exception)
    result = CliRunner().invoke(app, [*command, "--data", str(data)])
    assert result.exit_code == 0, result.output
    report = SweepReport.model_validate_json((output / "sweep.json").read_bytes())
    assert [(row.policy, row.precision) for row in report.success.rows] == [("fp32", "fp32"), ("bf16", "bf16")]
    assert [(item.source, item.role) for item in report.latency.variants[:2]] == [
        (str(tmp_path / "table.bundles" / "fp32"), "bundle"),
        (str(checkpoint), "torch"),
    ]
    assert "beside speed and size of the same bundle" in result.stderr
    assert json.loads(result.stdout)["rows"][1]["per_call_ms"]["p50"] > 0
    assert CliRunner().invoke(app, [*command, "--data", str(data)]).exit_code == 0
    assert SweepReport.model_validate_json((output / "sweep.json").read_bytes()).latency == report.latency, "timed once"


def test_a_table_without_an_output_is_refused(checkpoint: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "success", str(checkpoint), "--precisions", "all"])
    assert "--precisions: got no --output, expected a folder" in str(result.exception)
