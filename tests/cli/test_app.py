"""The command line as a user meets it: exit statuses, one line for a mistake, and real processes for what writes."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rfedge.cli.app import app, main
from rfedge.config import preset
from tests.export.conftest import write_checkpoint
from tests.synthetic_demonstrations import write_demonstrations


def rfedge(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rfedge.cli.app", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, where what it imports is loaded already; its own stdout and stderr are taken."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as raised:
        main([str(argument) for argument in arguments])
    return subprocess.CompletedProcess(arguments, int(raised.value.code or 0), out.getvalue(), err.getvalue())


def assert_one_line(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit 2, no traceback, and a last line on stderr that starts with the program's name and says `parts`."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    lines = [line for line in result.stderr.splitlines() if line.startswith("rfedge: ")]
    assert len(lines) == 1, result.stderr
    for part in parts:
        assert part in lines[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("cli") / "checkpoint", preset("tiny"))


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    path = checkpoint.parent / "bundle"
    result = rfedge("export", checkpoint, "--output", path, "--parity-steps", 4, "--json")
    assert result.returncode == 0, result.stderr
    manifest = json.loads(result.stdout.splitlines()[-1])
    assert manifest["parity"]["passed"] is True
    return path


def test_the_surface_of_the_command_line_is_pinned() -> None:
    """A new or lost command or flag is a decision, not an accident: change this list in the same commit."""
    import typer.main

    group = typer.main.get_command(app)
    surface = {}
    for name, command in ((name, lazy.load()) for name, lazy in group.commands.items()):  # type: ignore[attr-defined]
        members = getattr(command, "commands", None)
        leaves = {
            f"{name} {member}": getattr(leaf, "load", lambda leaf=leaf: leaf)() for member, leaf in (members or {}).items()
        }
        if members is None or command.params:  # a group with flags of its own is also a command
            leaves[name] = command
        for path, leaf in leaves.items():
            surface[path] = sorted({option for parameter in leaf.params for option in parameter.opts})
    expected = json.loads((Path(__file__).parent / "surface.json").read_text())
    assert surface == expected


@pytest.mark.parametrize(
    "command", ["", "demos", "train", "export", "verify", "run", "bench", "bench latency", "demos inspect"]
)
def test_every_help_explains_every_flag(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "160"})
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5


def test_export_writes_a_bundle_that_verify_accepts(bundle: Path, checkpoint: Path) -> None:
    result = rfedge("verify", bundle, "--checkpoint", checkpoint, "--steps", 2)
    assert result.returncode == 0, result.stderr
    assert "parity passed" in result.stdout
    assert "effective precision per block" in result.stdout


def test_a_dry_run_writes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    result = here("export", checkpoint, "--output", tmp_path / "bundle", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "nothing was written" in result.stdout
    result = here("export", checkpoint, "--output", tmp_path / "bundle", "--dry-run", "--json")
    assert json.loads(result.stdout)["written"] is False
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_altered_bundle_is_one_line(bundle: Path, tmp_path: Path) -> None:
    import shutil

    assert_one_line(here("verify", tmp_path / "nowhere"), "got no folder", "`rfedge export`")
    assert_one_line(here("run", tmp_path / "nowhere", "--task", "open_drawer"), "got no folder")
    altered = tmp_path / "altered"
    shutil.copytree(bundle, altered)
    data = bytearray((altered / "head.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (altered / "head.onnx").write_bytes(data)
    assert_one_line(here("verify", altered), "bundle file head.onnx", "It was altered after export")
    assert_one_line(here("run", altered, "--task", "open_drawer"), "bundle file head.onnx")
    assert_one_line(here("bench", "latency", altered), "bundle file head.onnx")


def test_unknown_names_are_answered_with_the_nearest_one(checkpoint: Path, tmp_path: Path) -> None:
    assert_one_line(
        here("export", checkpoint, "--output", tmp_path / "b", "--precision", "int9"), "did you mean 'int8'?", "'int9'"
    )
    assert_one_line(here("demos", "--output", tmp_path / "d", "--tasks", "lift_red"), "lift_red")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_dataset_folder_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    assert_one_line(here("train", "--config", "tiny", "--data", data, "--output", tmp_path / "t"), str(data))
    assert_one_line(here("export", checkpoint, "--precision", "int8", "--data", data, "--output", tmp_path / "b"), str(data))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_missed_gate_is_no_mistake_of_the_user() -> None:
    """Scripts tell by the exit status: 1 is a number that was measured and missed, 2 a command that could not be done."""
    result = rfedge("bench", "env", "--steps", 2, "--assert-step-ms", 0.001)
    if "renderer" in result.stderr:
        pytest.skip(result.stderr.strip())
    assert result.returncode == 1, result.stderr
    assert result.stderr.splitlines()[-1].startswith("rfedge: ")
    assert "expected below 0.001 ms" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_train_export_run_on_tiny(tmp_path: Path) -> None:
    """The main job in small: every arrow of the design's picture once, through the command line."""
    data = write_demonstrations(tmp_path / "data", episodes_per_task=2, num_frames=14)
    training = rfedge(
        *(
            "train",
            "--config",
            "tiny",
            "--data",
            data,
            "--output",
            tmp_path / "run",
            "--steps",
            3,
            "--batch-size",
            2,
            "--json",
        ),
        *("--chunk-size", 2, "--num-threads", 1),
    )
    assert training.returncode == 0, training.stderr
    result = json.loads(training.stdout.splitlines()[-1])
    assert result["steps"] == 3
    output = tmp_path / "bundle"
    exported = rfedge(
        *("export", tmp_path / "run" / "checkpoint", "--precision", "fp32", "--data", data, "--output", output),
        *("--parity-steps", 8),
    )
    assert exported.returncode == 0, exported.stderr
    driven = rfedge(*("run", output, "--mode", "open-loop", "--task", "open_drawer", "--max-steps", 4, "--json"))
    assert driven.returncode == 0, driven.stderr
    report = json.loads(driven.stdout.splitlines()[-1])
    (episode,) = report["episodes"]
    assert episode["num_steps"] == 4
    assert episode["num_inferences"] == 2


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("torch", ["export", "{checkpoint}", "--output", "{output}"], "export"),
        ("onnxscript", ["export", "{checkpoint}", "--output", "{output}"], "export"),
        ("torch", ["verify", "{bundle}", "--checkpoint", "{checkpoint}"], "export"),
        ("mujoco", ["run", "{bundle}", "--instruction", "go"], ""),
    ],
)
def test_a_missing_library_is_one_line_that_names_the_extra(
    checkpoint: Path, bundle: Path, tmp_path: Path, missing: str, arguments: list[str], extra: str
) -> None:
    filled = [word.format(checkpoint=checkpoint, bundle=bundle, output=tmp_path / "out") for word in arguments]
    code = f"import sys; sys.modules[{missing!r}] = None; from rfedge.cli.app import main; main({filled!r})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert_one_line(result, missing, f"pip install 'rfedge[{extra}]'" if extra else "pip install mujoco")
