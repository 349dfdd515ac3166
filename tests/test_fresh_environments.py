"""Empty environments with the wheel, on the Pythons of JetPack 6 and 7, and with README's own install lines."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.synthetic_demonstrations import write_demonstrations

ROOT = Path(__file__).parent.parent
INSTALLS = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("pip install ")]
# The index, and a machine that others use too, decide how long an installation takes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def _run(*command: object, cwd: Path, timeout: float = 3000, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")} | more
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=timeout, env=environment, cwd=cwd
    )


def _done(*command: object, cwd: Path, **more: str) -> str:
    """Return the stdout of a command that succeeds."""
    done = _run(*command, cwd=cwd, **more)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def _interpreter(version: str) -> Path | None:
    """Return an interpreter that starts; pyenv's shims stand for versions that nobody chose."""
    pyenv = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python"))
    for candidate in (shutil.which(f"python{version}"), *reversed(pyenv)):
        if candidate and _run(candidate, "-c", "", cwd=ROOT).returncode == 0:
            return Path(candidate)
    return None


def _install(interpreter: Path, folder: Path, *requirements: object, cwd: Path) -> Path:
    """Return the `rfedge` of a new environment after `pip install`, with this machine's configuration of pip.

    On the Python of constraints.txt the versions are those: a later PyTorch would be the build with CUDA.
    """
    _done(interpreter, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    version = _done(python, "-c", "import sys; print(*sys.version_info[:2])", cwd=folder)
    pins = {"PIP_CONSTRAINT": str(ROOT / "constraints.txt")} if version.split() == ["3", "11"] else {}
    _done(python, "-m", "pip", "install", "-q", *requirements, cwd=cwd, **pins)
    return python.with_name("rfedge")


def _install_as_readme(number: int, folder: Path) -> Path:
    """Return the `rfedge` of README's install line `number`, from a copy of the checkout."""
    checkout = folder / "checkout"
    names = _done("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT).split("\0")
    for source in (ROOT / name for name in names if name):
        if source.is_symlink() or source.exists():  # not deleted in this checkout
            target = checkout / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    pip, install, *requirements = shlex.split(INSTALLS[number], comments=True)
    assert (pip, install) == ("pip", "install")
    return _install(Path(sys.executable), folder, *requirements, cwd=checkout)


@pytest.fixture(scope="module", params=["3.10", "3.12", "README"])
def robot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `rfedge` of an environment that got the wheel, or the checkout, and what it asks for."""
    folder = tmp_path_factory.mktemp("robot")
    if request.param == "README":
        return _install_as_readme(0, folder)
    interpreter = _interpreter(request.param)
    if interpreter is None:
        pytest.skip(f"no Python {request.param} on this machine")
    _done(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT, cwd=folder)
    return _install(interpreter, folder, *folder.glob("*.whl"), cwd=folder)


def test_a_robot_needs_the_core_alone(robot: Path, tmp_path: Path) -> None:
    record = tmp_path / "run.jsonl"
    run = ("run", "playtable-jump-step", "--task", "turn_on_led", "--seed", "1", "--episodes", "1")
    here = (sys.executable, "-m", "rfedge.cli.app")
    _done(*here, *run, "--record", record, "--record-frames", "--json", cwd=ROOT)
    for command in (("--version",), ("doctor",), ("verify", "playtable-jump-step"), ("inspect", "playtable-jump-step")):
        _done(robot, *command, cwd=tmp_path)
    replay = ("replay", record, "playtable-jump-step", "--from-frames", "--tolerance", "0.02", "--json")
    assert json.loads(_done(robot, *replay, cwd=tmp_path))["num_steps"] > 10
    assert "No module named 'torch'" in _run(robot.with_name("python"), "-c", "import torch", cwd=tmp_path).stderr


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


def test_a_workstation_as_in_readme_trains_and_exports(tmp_path: Path) -> None:
    rfedge = _install_as_readme(1, tmp_path)
    write_demonstrations(tmp_path / "data")
    _done(rfedge, "train", "--config", "tiny", "--data", "data", "--output", "run", "--steps", "2", cwd=tmp_path)
    _done(rfedge, "export", "run/checkpoint", "--output", "tiny", cwd=tmp_path)
    _done(rfedge, "export", "playtable-jump-step", "--data", "data", "--output", "bundle", cwd=tmp_path)
    _done(rfedge, "verify", "bundle", cwd=tmp_path)


def test_the_simulator_as_in_readme_measures_success(tmp_path: Path) -> None:
    rfedge = _install_as_readme(2, tmp_path)
    _done(rfedge, "run", "playtable-jump-step", "--task", "turn_on_led", cwd=tmp_path)
    report = json.loads(_done(rfedge, "bench", "success", "playtable-jump-step", "--num", "1", "--json", cwd=tmp_path))
    assert [row["chains"]["num_chains"] for row in report["rows"]] == [1]
