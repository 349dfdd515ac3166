"""CALVIN's chains on the command line: themselves, and with the scripted experts in them."""

import json
from pathlib import Path

import pytest
import typer

from rfedge.benchmarks.success.chains import ChainReport
from rfedge.cli.bench.app import bench_app
from rfedge.errors import ConfigError
from tests.errors import raises

app = typer.Typer()
app.add_typer(bench_app, name="bench")


def _call(command: str, *arguments: object) -> None:
    app(args=["bench", command, *(str(argument) for argument in arguments)], standalone_mode=False)


def test_without_an_agent_it_shows_the_chains(capsys: pytest.CaptureFixture[str]) -> None:
    _call("chains", "--num", 3, "--json")
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    document = json.loads(line)
    assert document["num_chains"] == 3
    assert document["official"] is None
    assert sum(document["task_counts"].values()) == 15
    assert document["task_counts"]["place_in_slider"] == 3
    assert "place_in_slider" in err
    _call("chains", "--num", 3)
    assert f"sha256 {document['sha256']}" in capsys.readouterr().out


def test_experts_run_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--expert", "--num", 2, "--max-steps", 30, "--output", tmp_path / "run"]
    _call("success", *arguments, "--json")
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    report = ChainReport.model_validate_json(line)
    assert report.conditions.num_chains == 2
    assert (report.conditions.agent, report.conditions.language) == ({"name": "expert"}, "evaluation")
    assert report == ChainReport.model_validate_json((tmp_path / "run" / "report.json").read_bytes())
    assert "average length" in err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"chains.jsonl", "results.json", "report.json"}
    _call("success", *arguments)
    assert f"{report.average_length.value:.2f} [" in capsys.readouterr().out
    with raises(ConfigError, "number of chains of the run in ...", got=1, expected="at least 2, which are there"):
        _call("success", *arguments, "--num", 1)


def test_somebody_has_to_act() -> None:
    with raises(ConfigError, got="neither policies nor --expert"):
        _call("success", "--num", 1)
