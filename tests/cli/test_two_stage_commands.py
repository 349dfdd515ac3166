"""A backbone in two graphs as a user meets it: export, verify, inspect, build and run through the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rfedge.cli.app import app
from rfedge.config import preset
from rfedge.errors import ArtifactError, ConfigError
from tests.export.conftest import write_checkpoint
from tests.export.tensorrt_bundles import load_rtx

PRECISION = "vision=int8-weight,decoder=fp16"


def succeed(*arguments: object) -> str:
    """Run a command and return what it printed on stdout."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.stdout


def refused(*arguments: object) -> str:
    """Run a command that ends in one line, and return the line."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, (ConfigError, ArtifactError)), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("cli") / "checkpoint", preset("tiny"))


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    path = checkpoint.parent / "bundle"
    arguments = ("--stages", "two", "--precision", PRECISION, "--parity-steps", 4, "--json")
    manifest = json.loads(succeed("export", checkpoint, "--output", path, *arguments))
    assert manifest["precision"]["requested"] == PRECISION
    assert list(manifest["contract"]["backbone_stages"]) == ["vision", "decoder"]
    assert manifest["parity"]["inputs"].endswith("checked against the gates of int8-weight")
    return path


def test_verify_hashes_and_measures_both_stages(bundle: Path, checkpoint: Path) -> None:
    manifest = json.loads(succeed("verify", bundle, "--checkpoint", checkpoint, "--steps", 3, "--json"))
    assert manifest["parity"]["num_steps"] == 3
    assert manifest["parity"]["passed"] is True


def test_inspect_lists_both_stages(bundle: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(bundle), "--device", "orin-nano-8gb", "--json"], env={"COLUMNS": "140"})
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [(graph["graph"], graph["file"], graph["precision"]) for graph in document["graphs"]] == [
        ("vision", "vision.onnx", "int8-weight (12 of 17 MatMuls)"),
        ("decoder", "decoder.onnx", "fp16"),
        ("head", "head.onnx", "fp32"),
    ]
    assert sum(graph["macs"] for graph in document["graphs"]) == document["total"]["macs"]
    assert document["graphs"][0]["size_bytes"] == (bundle / "vision.onnx").stat().st_size
    assert document["disagreements"] == []
    assert "graphs, each loaded as one" in result.stderr


def test_run_one_stage_at_a_time(bundle: Path) -> None:
    report = json.loads(
        succeed(
            "run", bundle, "--instruction", "pull the drawer open", "--max-steps", 2, "--one-stage-at-a-time", "--json"
        ).splitlines()[-1]
    )
    assert report["precision"] == PRECISION
    assert report["episodes"][0]["num_steps"] == 2


def test_build_plans_the_stages_that_there_are(bundle: Path) -> None:
    load_rtx()
    plan = json.loads(succeed("build", bundle, "--aot", "sm86", "--dry-run", "--json"))
    assert [row["stage"] for row in plan] == ["vision", "decoder", "head"]
    (row,) = json.loads(succeed("build", bundle, "--aot", "sm86", "--stage", "decoder", "--json"))
    assert row["stage"] == "decoder"
    assert Path(row["plan"]).name == "decoder.plan"
    assert (
        "--stage: got 'backbone', expected one of vision, decoder, head, all. Choose one of what this bundle has."
    ) in refused("build", bundle, "--aot", "sm86", "--stage", "backbone")


def test_mistakes_are_one_line(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("export", checkpoint, "--output", tmp_path / "bundle")
    assert "(did you mean 'two'?)" in refused(*arguments, "--stages", "tow")
    assert "Pass --stages two" in refused(*arguments, "--precision", PRECISION)
    text = refused(*arguments, "--stages", "two", "--precision", "mixed", "--budget", "action_error=0.1")
    assert "mixed is searched over one graph" in text
    assert list(tmp_path.iterdir()) == []
