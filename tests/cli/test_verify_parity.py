"""`rfedge verify` as a command with an argument and, beside it, `rfedge verify parity`."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rfedge.cli.app import app
from rfedge.errors import ArtifactError

FOLDER = os.environ.get("RFEDGE_PARITY_FIXTURES")


@pytest.mark.parametrize("arguments", [["--steps", "2", "nowhere"], ["nowhere", "--steps", "2"], ["./parity"]])
def test_a_word_that_is_no_subcommand_is_a_bundle(arguments: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["verify", *arguments])
    assert isinstance(result.exception, ArtifactError)
    assert "expected a folder written by `rfedge export`" in str(result.exception)


@pytest.mark.parametrize(("arguments", "message"), [([], "Missing argument"), (["a", "b"], "unexpected extra argument")])
def test_the_number_of_arguments_is_checked(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["verify", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_parity_has_its_own_flags(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["verify", "parity", "--fixture", str(tmp_path)])
    assert isinstance(result.exception, ArtifactError)
    assert "expected config.json, io.npz and weights" in str(result.exception)


@pytest.mark.skipif(FOLDER is None, reason="RFEDGE_PARITY_FIXTURES names no folder of fixtures")
def test_parity_prints_one_document() -> None:
    result = CliRunner().invoke(app, ["verify", "parity", "--fixture", f"{FOLDER}/rf_neox_x2_post", "--json"])
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["passed"] is True
    assert {"pose", "gripper", "gradient norms"} <= {stage["stage"] for stage in document["stages"]}
