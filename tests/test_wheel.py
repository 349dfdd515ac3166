"""The wheel in an empty environment, on the Pythons of JetPack 6 and 7: the core alone does a robot's part."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The index, and a machine that others use too, decide how long an installation takes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def _run(*command: object, cwd: Path, timeout: float = 1500) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=timeout, env=environment, cwd=cwd
    )


def _interpreter(version: str) -> Path | None:
    """Return an interpreter that starts; pyenv's shims stand for versions that nobody chose."""
    pyenv = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python"))
    for candidate in (shutil.which(f"python{version}"), *reversed(pyenv)):
        if candidate and _run(candidate, "-c", "", cwd=ROOT).returncode == 0:
            return Path(candidate)
    return None


@pytest.fixture(scope="module", params=["3.10", "3.12"])
def robot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `rfedge` of an environment that got the wheel and what the wheel asks for."""
    interpreter = _interpreter(request.param)
    if interpreter is None:
        pytest.skip(f"no Python {request.param} on this machine")
    folder = tmp_path_factory.mktemp("wheel")
    built = _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT, cwd=folder)
    assert built.returncode == 0, built.stderr
    made = _run(interpreter, "-m", "venv", folder / "venv", cwd=folder)
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("*.whl")
    installed = _run(folder / "venv/bin/python", "-m", "pip", "install", "-q", wheel, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return folder / "venv/bin/rfedge"


def test_a_robot_needs_the_core_alone(robot: Path, tmp_path: Path) -> None:
    record = tmp_path / "run.jsonl"
    run = ("run", "playtable-jump-step", "--task", "turn_on_led", "--seed", "1", "--episodes", "1")
    here = (sys.executable, "-m", "rfedge.cli.app")
    made = _run(*here, *run, "--record", record, "--record-frames", "--json", cwd=ROOT)
    assert made.returncode == 0, made.stderr
    for command in (("--version",), ("doctor",), ("verify", "playtable-jump-step"), ("inspect", "playtable-jump-step")):
        done = _run(robot, *command, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
    done = _run(
        robot, "replay", record, "playtable-jump-step", "--from-frames", "--tolerance", "0.02", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["num_steps"] > 10


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("run", "playtable-jump-step", "--task", "turn_on_led"), "sim"),
        (("export", "playtable-jump-step", "--precision", "int8", "--output", "int8"), "export"),
        (("bench", "report", "record.json", "--output", "report.html"), "plots"),
    ],
)
def test_what_is_missing_is_named_with_the_one_command(
    robot: Path, tmp_path: Path, command: tuple[str, ...], extra: str
) -> None:
    shutil.copy(next((ROOT / "benchmarks/results").glob("success_playtable*.json")), tmp_path / "record.json")
    done = _run(robot, *command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"pip install 'rfedge[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
