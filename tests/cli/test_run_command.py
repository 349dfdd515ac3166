"""`rfedge run` as a process: signals, kills, records and exit statuses."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import rfedge
from rfedge.cli.app import main
from rfedge.machine.power import sampler
from rfedge.machine.power.sampler import Sampler
from rfedge.runtimes.rollout.run_record import read_run
from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="mujoco is not installed")
ENVIRONMENT = os.environ | {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl"), "COLUMNS": "200"}
ENDLESS = ("--task", "open_drawer", "--max-steps", 100_000, "--threads", 1)
DEADLINE_S = 120.0  # for a start, and for an end: either takes seconds, of a core that others have too


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "b"
    write_handmade_bundle(path, tiny_config(chunk_size=6))
    return path


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "rfedge.cli.app", "run", *(str(argument) for argument in arguments)]


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*arguments), capture_output=True, text=True, check=False, env=ENVIRONMENT)


def _replay(record: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["replay", str(record), *flags])
    return int(exit_.value.code or 0), capsys.readouterr().out


# Prints the frames of ours from `main` to the first call of a graph, and what of the project was imported for it.
_COUNTED = """
import json, sys, traceback
from pathlib import Path
import onnxruntime

own, call = Path(sys.argv[1]).resolve(), onnxruntime.InferenceSession.run_with_iobinding
installed = Path(onnxruntime.__file__).resolve().parents[1]  # may lie below the checkout

def run(session, *arguments):
    folders = [(frame.name, Path(frame.filename).resolve().parents) for frame in traceback.extract_stack()[1:]]
    stack = [name for name, parents in folders if own in parents and installed not in parents]
    names = [name for name in sys.modules if name.split(".")[0] == "rfedge"]
    if "roll_out" in stack:
        print(json.dumps({"stack": stack, "modules": names}), flush=True)
        onnxruntime.InferenceSession.run_with_iobinding = call
    return call(session, *arguments)

onnxruntime.InferenceSession.run_with_iobinding = run
from rfedge.cli.app import main
main(sys.argv[2:])
"""


def test_little_lies_between_the_command_and_the_graph(bundle: Path) -> None:
    root = Path(rfedge.__file__).resolve().parents[1]
    command = [sys.executable, "-c", _COUNTED, root, "run", bundle, "--task", "open_drawer", "--max-steps", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    counted = json.loads(result.stdout.splitlines()[0])
    assert len(counted["stack"]) <= 12, counted["stack"]
    runtimes = [name for name in counted["modules"] if name.startswith("rfedge.runtimes")]
    assert len(runtimes) <= 45, sorted(runtimes)
    unused = ("rfedge.runtimes.server", "rfedge.machine.power", "rfedge.export", "rfedge.benchmarks", "rfedge.cli.bench")
    assert not [name for name in counted["modules"] if name.startswith(unused)]


def _signal_after_some_steps(record: Path, number: signal.Signals, *arguments: object) -> tuple[int, str, str]:
    with subprocess.Popen(
        _command(*arguments, "--record", record), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        try:
            ends_s = time.monotonic() + DEADLINE_S
            while not (record.exists() and record.read_bytes().count(b"\n") > 8):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < ends_s
                time.sleep(0.02)
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()  # or the block would wait for ever
    return process.returncode, stdout, stderr


@pytest.mark.parametrize(
    ("number", "status", "options"),
    [(signal.SIGTERM, 143, ("--json", "--mode", "overlapped")), (signal.SIGINT, 130, ("--json",))],
)
def test_a_signal_ends_with_zero_motion_a_summary_and_a_whole_record(
    bundle: Path,
    tmp_path: Path,
    number: signal.Signals,
    status: int,
    options: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = tmp_path / "run.jsonl"
    returned, stdout, stderr = _signal_after_some_steps(record, number, bundle, *ENDLESS, *options)
    assert returned == status, stderr
    assert f"stopped by {number.name}: zero motion, gripper held" in stderr
    assert "Traceback" not in stderr
    report = json.loads(stdout)
    assert report["stopped_by"] == number.name
    run = read_run(record)
    assert not run.is_cut
    (episode,) = run.episodes
    assert episode.end.ended == number.name
    assert len(episode.steps) == report["episodes"][0]["num_steps"] > 6
    status, stdout = _replay(record, capsys, "--json")
    assert (status, json.loads(stdout)["num_steps"]) == (0, len(episode.steps))


def test_a_kill_loses_at_most_the_last_line(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "run.jsonl"
    returned, _, _ = _signal_after_some_steps(record, signal.SIGKILL, bundle, *ENDLESS, "--record-frames")
    assert returned == -signal.SIGKILL
    (episode,) = read_run(record).episodes
    assert len(episode.steps) >= 6
    assert episode.end is None
    frames = {int(path.stem[-6:]) for path in (tmp_path / "run.jsonl.frames").glob("*.npz") if "partial" not in path.name}
    assert set(range(len(episode.steps) - 1)) <= frames
    with record.open("ab") as file:
        file.write(b'{"kind":"step","episo')
    status, stdout = _replay(record, capsys)
    assert status == 0, stdout
    assert f"note: the last line of {record} is not finished; it was left out" in " ".join(stdout.split())
    assert f"{len(episode.steps)} steps of 1 episodes: every action as recorded, bit for bit" in stdout


def test_a_replay_that_differs_ends_with_status_1(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "run.jsonl"
    recorded = _run(bundle, "--task", "open_drawer", "--max-steps", 4, "--record", record, "--max-step-m", 0.004)
    assert recorded.returncode == 0, recorded.stderr
    assert f"record: {record}" in recorded.stdout
    assert "translation-limit" in recorded.stdout
    lines = record.read_text().splitlines()
    step = json.loads(lines[4])
    lines[4] = json.dumps(step | {"sent": [0.25, *step["sent"][1:]]})
    record.write_text("\n".join(lines) + "\n")
    status, stdout = _replay(record, capsys)
    assert status == 1
    assert "episode 0, step 2: sent action differs\n  recorded 0.25 " in stdout


def test_a_robot_that_was_stopped_ends_with_status_1(bundle: Path) -> None:
    stopped = _run(bundle, *ENDLESS, "--speed", 3000, "--late", "hold", "--stop-after-misses", 3, "--json")
    assert stopped.returncode == 1, stopped.stderr
    (episode,) = json.loads(stopped.stdout)["episodes"]
    assert (episode["ended"], episode["num_steps"], episode["num_missed"]) == ("misses", 3, 3)
    assert "stopped after too many misses" in stopped.stderr


def test_a_missing_record_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["replay", "missing.jsonl"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith(
        "rfedge: record missing.jsonl: got No such file or directory, expected a file."
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "rfedge: goal: got neither, expected --task or --instruction. Pass --task open_drawer, for instance."),
        (("playtable-jump-stop", "--task", "open_drawer"), "rfedge: playtable-jump-stop: got no such folder"),
        (("b", "--workspace", "1,2"), "rfedge: workspace: got '1,2', expected six numbers in metres."),
        (("b", "--late", "never"), "rfedge: --late: got 'never', expected one of send, hold, repeat"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["run", *arguments])
    assert exit_.value.code == 2
    written = capsys.readouterr().err
    assert written.startswith(text)
    assert written.count("\n") == 1


def test_resources_are_sampled_beside_the_run(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "Sampler", partial(Sampler, 0.01, sources=[]))
    command = ["run", str(bundle), "--task", "open_drawer", "--max-steps", "12", "--threads", "1", "--json"]
    with pytest.raises(SystemExit):
        main([*command, "--resources"])
    out, err = capsys.readouterr()
    used = json.loads(out)["resources"]
    assert (used["num_actions"], used["power"]) == (12, [])
    assert used["rss_peak_bytes"] >= used["rss_start_bytes"] > 10_000_000
    assert used["num_samples"] > 12
    assert "beside the run, simulator included" in err
    with pytest.raises(SystemExit):
        main(command)
    assert json.loads(capsys.readouterr().out)["resources"] is None
