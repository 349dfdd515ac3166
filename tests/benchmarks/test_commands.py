"""`rfedge run` and `rfedge bench latency` as a user meets them."""

import importlib.util
import json
from pathlib import Path

import pytest
import typer

from rfedge.benchmarks.latency.run import LatencyReport
from rfedge.cli.bench.app import bench_app
from rfedge.cli.run import run
from rfedge.errors import BackendUnavailableError, GateError, RfedgeError
from tests.errors import raises

app = typer.Typer()
app.command()(run)
app.add_typer(bench_app, name="bench")


def _call(*arguments: object) -> None:
    app(args=[str(argument) for argument in arguments], standalone_mode=False)


def _refusal(*arguments: object) -> str:
    with pytest.raises(RfedgeError) as error:
        _call(*arguments)
    return str(error.value)


def test_users_errors_are_one_sentence(bundle: Path, tmp_path: Path) -> None:
    assert _refusal("run", tmp_path / "none", "--task", "open_drawer") == (
        f"bundle {tmp_path / 'none'}: got no folder, expected a folder written by `rfedge export`. "
        "Check the path or export the policy again."
    )
    assert "(did you mean 'open_drawer'?)" in _refusal("run", bundle, "--task", "open_drawr")
    assert _refusal("run", bundle, "--task", "open_drawer", "--mode", "open-loop", "--execute-steps", 9).startswith(
        "execute_steps: got 9, expected 1 to 4 (chunk_size)."
    )
    assert "(did you mean 'closed-loop'?)" in _refusal("run", bundle, "--task", "open_drawer", "--mode", "closed")
    assert "(did you mean 'playtable'?)" in _refusal("run", bundle, "--task", "open_drawer", "--env", "playtabel")
    assert _refusal("run", bundle).startswith("goal: got neither")
    assert _refusal("bench", "latency", bundle, "--iterations", 0).startswith("iterations: got 0")
    assert "(did you mean 'never'?)" in _refusal("bench", "latency", bundle, "--spinning", "nevr")


def test_bench_latency_prints_a_table_and_ends_in_one_document(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--iterations", 5, "--warmup", 0, "--settle-ms", 0, "--threads", 1, "--execute-steps", 2]
    _call("bench", "latency", bundle, *options, "--json", "--output", tmp_path / "r.json")
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    report = LatencyReport.model_validate_json(line)
    assert report == LatencyReport.model_validate_json((tmp_path / "r.json").read_text())
    assert report.conditions.execute_steps == 2
    assert "backbone" in err
    assert "the noise of the machine" in err
    _call("bench", "latency", bundle, *options)
    assert "backbone" in capsys.readouterr().out


def test_a_failed_gate_comes_after_its_numbers(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(report: LatencyReport) -> None:
        raise GateError("too slow")

    monkeypatch.setattr("rfedge.benchmarks.latency.run.assert_faster", fail)
    options = ["--iterations", 2, "--warmup", 0, "--settle-ms", 0, "--threads", 1]
    with raises(GateError, "too slow"):
        _call("bench", "latency", bundle, *options, "--assert-faster", "--output", tmp_path / "r.json")
    assert "the noise of the machine" in capsys.readouterr().out
    assert (tmp_path / "r.json").is_file()


def test_run_prints_episodes_stages_and_one_document(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("mujoco") is None:  # not imported here: mujoco chooses its renderer at import
        pytest.skip("mujoco is not installed")
    try:
        _call("run", bundle, "--instruction", "make coffee", "--max-steps", 3, "--threads", 1, "--json")
    except BackendUnavailableError as error:
        pytest.skip(str(error))  # no OpenGL on this machine
    out, err = capsys.readouterr()
    document = json.loads(out.splitlines()[-1])
    assert document["format"] == "rfedge-rollouts"
    assert document["task"] is None
    assert "success is not checked" in err
    cells = next([cell.strip() for cell in line.split("│")] for line in err.splitlines() if "not checked " in line)
    assert cells[1:5] == ["0", "not checked", "3", "3"]
    assert "postprocess" in err
