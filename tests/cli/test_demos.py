"""`rfedge demos` as a user meets it: each way of collecting, a kill in the middle, and merging what came of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import typer

from rfedge.bundle.artifact import hash_file
from rfedge.cli.demos.app import demos_app
from rfedge.config import preset
from rfedge.data import CalvinDataset
from rfedge.errors import ConfigError
from tests.errors import raises
from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle

LIGHTS = ("--tasks", "turn_on_led,turn_off_led")
app = typer.Typer()
app.add_typer(demos_app)


def _call(*arguments: object) -> object:
    return app(args=["demos", *(str(argument) for argument in arguments)], standalone_mode=False)


def _record(root: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads((root / "collection.json").read_bytes())
    return document


def _contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "b"
    decoder = preset("tiny").decoder.model_dump() | {"text_length": 64}  # its tokenizer knows next to no words
    write_handmade_bundle(path, tiny_config(chunk_size=4, decoder=decoder))
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demos") / "plain"
    assert _call("--output", root, *LIGHTS, "--episodes-per-task", 1) == 0
    return root


def test_the_record_names_everything_that_decides_an_episode(plain: Path) -> None:
    arguments = _record(plain)["arguments"]
    assert isinstance(arguments, dict)
    assert arguments["environment"] == "playtable"
    assert arguments["renderer"] in ("egl", "osmesa", "glfw")
    expected = {"chain_length": 1, "max_steps": 64, "action_noise": 0.0, "noise_share": 0.0, "policy": None}
    assert {name: arguments[name] for name in expected} == expected


def test_noise_and_chains(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("--output", tmp_path / "d", *LIGHTS, "--episodes-per-task", 1, "--action-noise", 0.3, "--noise-share", 0.4)
    assert _call(*command, "--chain-length", 2, "--at-spots", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [(row["episodes"], row["segments"], row["solved"]) for row in document["tasks"]] == [(1, 2, 2), (1, 2, 2)]
    dataset = CalvinDataset.open(tmp_path / "d")
    assert len(dataset.episodes) == 2
    assert [segment.task for segment in dataset.segments] == [
        *("turn_on_led", "turn_off_led"),
        *("turn_off_led", "turn_on_led"),
    ]
    assert dataset.segments[2].start == 128
    assert dataset.segments[1].start == dataset.segments[0].end + 1
    first, other = dataset.frame(0), CalvinDataset.open(plain).frame(0)  # the same start but for the blocks
    np.testing.assert_array_equal(first["robot_obs"], other["robot_obs"])
    assert np.abs(first["scene_obs"][6:] - other["scene_obs"][6:]).max() > 0.02
    assert _record(tmp_path / "d")["arguments"]["action_noise"] == 0.3  # type: ignore[index]
    assert _record(tmp_path / "d")["arguments"]["at_spots"]  # type: ignore[index]
    with raises(ConfigError, "chain length of the collection in ...", got=1, expected="2, with which it was started"):
        _call(*command)


def test_a_policy_drives_and_its_failures_are_kept(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("--tasks", "open_drawer", "--episodes-per-task", 1, "--policy", bundle, "--max-steps", 70, "--json")
    mode = ("--mode", "open-loop", "--execute-steps", 4)
    assert _call("--output", tmp_path / "d", *command, *mode) == 0
    (row,) = json.loads(capsys.readouterr().out)["tasks"]
    assert (row["episodes"], row["segments"], row["solved"], row["frames"], row["missing"]) == (1, 2, 0, 70, 0)
    dataset = CalvinDataset.open(tmp_path / "d")
    assert [segment.num_frames for segment in dataset.segments] == [35, 35]
    arguments = _record(tmp_path / "d")["arguments"]
    assert isinstance(arguments, dict)
    assert arguments["keep_failures"] is True
    assert arguments["policy"] == {
        "name": "tiny",
        "precision": "fp32",
        "manifest_sha256": hash_file(bundle / "manifest.json"),
        "mode": "open-loop",
        "execute_steps": 4,
        "expert_share": 0.0,
        "takeover_steps": None,
    }
    shared = ("--tasks", "turn_on_led", *command[2:], "--expert-share", 1)
    assert _call("--output", tmp_path / "expert", *shared) == 0
    (row,) = json.loads(capsys.readouterr().out)["tasks"]
    assert (row["segments"], row["solved"]) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--mode", "open-loop"], "--mode: got no --policy, expected both or neither. Add --policy."),
        (["--expert-share", 0.5], "--expert-share: got no --policy"),
        (["--max-steps", 100], "--max-steps: got no --policy"),
        (["--noise-share", 0.5], "--noise-share: got no --action-noise"),
        (["--policy", "nowhere"], "got no folder"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: list[object], text: str
) -> None:
    from rfedge.errors import RfedgeError

    with pytest.raises(RfedgeError) as error:
        _call("--output", tmp_path / "d", *LIGHTS, *arguments)
    assert text in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_policy_that_cannot_take_an_instruction_is_refused_at_once(tmp_path: Path) -> None:
    write_handmade_bundle(tmp_path / "b", tiny_config())
    with raises(ConfigError, "instruction 'switch on the led'", got="a policy that refuses it ..."):
        _call("--output", tmp_path / "d", *LIGHTS, "--policy", tmp_path / "b")
    assert not (tmp_path / "d").exists()


def test_all_tasks_have_an_expert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rfedge.envs import TASKS

    _call("--output", tmp_path / "d", "--dry-run")
    out = capsys.readouterr().out
    assert "nothing was written" in out
    assert [task for task in TASKS if task not in out] == []
    _call("--output", tmp_path / "d", "--dry-run", "--json")
    assert json.loads(capsys.readouterr().out)["written"] is False
    assert list(tmp_path.iterdir()) == []


def test_merging_is_told_in_a_table_and_one_document(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call("--output", tmp_path / "more", *LIGHTS, "--episodes-per-task", 1, "--seed", 1) == 0
    capsys.readouterr()
    _call("merge", plain, tmp_path / "more", "--output", tmp_path / "all", "--json")
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["num_segments"] == len(CalvinDataset.open(tmp_path / "all").segments) == 4
    assert document["num_linked"] == document["num_frames"]
    assert "shift" in err


def test_a_killed_collection_goes_on_and_ends_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "rfedge.cli.app", "demos", *LIGHTS, "--episodes-per-task", "4", "--seed", "2"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([*command, "--output", str(killed), "--workers", "2"], stderr=subprocess.DEVNULL)
    journal = killed / "collection.journal"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.is_file() and journal.read_bytes().count(b"\n")):
        assert process.poll() is None, "ended before its first episode"
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = journal.read_bytes().count(b"\n")
    assert 1 <= done < 8
    # Nobody is left behind to wait for jobs that never come.
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
    for folder in (killed, whole):
        assert _call("--output", folder, *LIGHTS, "--episodes-per-task", 4, "--seed", 2, "--json") == 0
    assert [json.loads(line)["num_resumed"] for line in capsys.readouterr().out.splitlines()] == [done, 0]
    assert _contents(killed) == _contents(whole)
    assert not [name for name in os.listdir(killed) if name.endswith(".partial")]
