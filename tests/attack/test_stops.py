"""Ctrl-C, SIGTERM and a lost terminal in every long command: what was kept is said, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rfedge.bundle.artifact import load_bundle
from rfedge.config import preset
from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle
from tests.synthetic_demonstrations import write_demonstrations

pytestmark = [pytest.mark.attack, pytest.mark.slow, pytest.mark.timeout(600)]
torch = pytest.importorskip("torch")
ENVIRONMENT = os.environ | {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl"), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
SIGNALS = ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("data"), episodes_per_task=2, num_frames=14)


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "rfedge.cli.app", *(str(argument) for argument in arguments)]


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*arguments), capture_output=True, text=True, check=False, env=ENVIRONMENT)


def _stopped(number: signal.Signals, is_time: Callable[[], bool], *arguments: object) -> tuple[int, str]:
    """Start a command, send the signal when it is time, and return status and stderr."""
    with subprocess.Popen(
        _command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        ends_s = time.monotonic() + 300
        while not is_time():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < ends_s
            time.sleep(0.02)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=300)
    return process.returncode, stderr


def _last_line(stderr: str) -> str:
    assert "Traceback" not in stderr, stderr
    return [line for line in stderr.splitlines() if line.startswith("rfedge: ")][-1]


def _steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize(("number", "status"), SIGNALS)
@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_training_keeps_its_state_and_a_usable_checkpoint(
    command: str, number: signal.Signals, status: int, data: Path, tmp_path: Path
) -> None:
    from rfedge.model import load_checkpoint

    out = tmp_path / "run"
    options = ["--config", "tiny", "--data", data, "--output", out, "--batch-size", "2", "--cache", tmp_path / "cache"]
    options += ["--save-every", "0", "--validation-fraction", "0.3"]
    returned, stderr = _stopped(number, lambda: _steps(out) >= 3, command, *options, "--steps", 100_000)
    assert returned == status
    states = list((out / "state").iterdir())
    assert len(states) == 1
    step = int(states[0].name.removeprefix("step-"))
    assert step >= 3
    assert _last_line(stderr) == (
        f"rfedge: stopped by {number.name} after step {step}; state and checkpoint are in {out}, the same command goes on"
    )
    load_checkpoint(out / "checkpoint")
    done = _run(command, *options, "--steps", step + 2, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == step + 2


def test_a_stopped_training_goes_on_as_if_it_had_not_been(data: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    def options(out: Path) -> list[object]:
        return ["--config", "tiny", "--data", data, "--output", out, "--batch-size", "2", "--cache", tmp_path / "cache"]

    cut, whole = tmp_path / "cut", tmp_path / "whole"
    _stopped(signal.SIGINT, lambda: _steps(cut) >= 2, "train", *options(cut), "--steps", 40)
    for out in (cut, whole):
        assert _run("train", *options(out), "--steps", 40).returncode == 0
    ours, theirs = (load_file(out / "checkpoint" / "model.safetensors") for out in (cut, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_second_trainer_is_refused(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["train", "--config", "tiny", "--data", data, "--output", out, "--batch-size", "2", "--cache", tmp_path / "c"]
    refused: list[subprocess.CompletedProcess[str]] = []

    def is_time() -> bool:
        if _steps(out) >= 1 and not refused:
            refused.append(_run(*options, "--steps", 1))
        return bool(refused)

    status, _ = _stopped(signal.SIGINT, is_time, *options, "--steps", 100_000)
    assert status == 130
    assert refused[0].returncode == 2
    assert f"rfedge: {out}: got another process that writes it, expected one at a time." in refused[0].stderr
    assert _run(*options, "--steps", 1).returncode == 0, "the lock went with its process"


@pytest.mark.parametrize(("number", "status"), SIGNALS)
@pytest.mark.parametrize("workers", [1, 2])
def test_demos_keep_what_was_recorded(number: signal.Signals, status: int, workers: int, tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    out = tmp_path / "d"
    options = ["demos", "--tasks", "open_drawer", "--episodes-per-task", 12, "--output", out, "--workers", workers]
    journal = out / "collection.journal"
    returned, stderr = _stopped(number, lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 2, *options)
    assert returned == status
    assert _last_line(stderr) == (f"rfedge: stopped; the episodes that were recorded are in {out}, the same command goes on")
    kept = journal.read_bytes().count(b"\n")
    assert kept >= 2
    done = _run(*options[:-1], 1, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["num_resumed"] == kept


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_an_export_that_is_stopped_writes_nothing(number: signal.Signals, status: int, tmp_path: Path) -> None:
    from tests.export.conftest import write_checkpoint

    checkpoint, out = write_checkpoint(tmp_path / "checkpoint", preset("tiny")), tmp_path / "bundle"
    options = ["export", checkpoint, "--output", out, "--parity-steps", 400]
    returned, stderr = _stopped(number, lambda: any(tmp_path.glob(".bundle-*.partial/.work/*")), *options)
    assert returned == status
    assert _last_line(stderr) == f"rfedge: stopped; nothing was written to {out}"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert _run(*options[:-1], 4).returncode == 0
    load_bundle(out)


def test_success_keeps_what_was_finished(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    bundle, out = tmp_path / "b", tmp_path / "out"
    write_handmade_bundle(bundle, tiny_config(chunk_size=4))
    options = ["bench", "success", bundle, "--num", 0, "--single-tasks", 4, "--tasks", "open_drawer", "--max-steps", 30]
    options += ["--output", out]

    def num_trials() -> int:
        return sum(path.read_bytes().count(b"\n") - 1 for path in out.rglob("trials.jsonl"))

    returned, stderr = _stopped(signal.SIGINT, lambda: num_trials() >= 1, *options)
    assert returned == 130
    assert _last_line(stderr) == f"rfedge: stopped; what was finished is in {out}, the same command goes on"
    kept = num_trials()
    assert kept >= 1
    assert _run(*options).returncode == 0


def test_of_two_conversions_into_one_folder_one_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from tests.data.lerobot_dataset import write_lerobot

    source, out = write_lerobot(tmp_path / "source", lengths=(60, 60), files=(0, 0)), tmp_path / "out"
    words = ["demos", "convert", source, "--from", "lerobot", "--output", out, "--json"]
    both = [
        subprocess.Popen(_command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        for _ in range(2)
    ]
    ended = [
        (process.returncode, stdout, stderr) for process in both for stdout, stderr in [process.communicate(timeout=300)]
    ]
    assert sorted(code for code, _, _ in ended) == [0, 2]
    (refused,) = [stderr for code, _, stderr in ended if code == 2]
    assert f"rfedge: {out}: got a" in _last_line(refused)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
