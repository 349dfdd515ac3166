"""Damaged demonstrations as a user meets them: training ends in one line, inspection lists the damage.

A process of its own costs seconds of imports, so one kind of damage goes through real processes and the others through
the same entry point in this one.
"""

import io
import json
import pickle  # noqa: TID251 - builds the hostile file that must be refused
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from rfedge.cli.app import main
from rfedge.data.frames import frame_name
from tests.data.released_split import write_split

FRAME = 20


@pytest.fixture(autouse=True)
def _keep_the_signal_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def rfedge(*arguments: object, own_process: bool = False) -> subprocess.CompletedProcess[str]:
    words = [str(argument) for argument in arguments]
    if not own_process:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main(words)
        return subprocess.CompletedProcess(words, ended.value.code, out.getvalue(), err.getvalue())
    command = [sys.executable, "-m", "rfedge.cli.app", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("rfedge: ")]
    return line


def train(root: Path, *, own_process: bool = False) -> subprocess.CompletedProcess[str]:
    arguments = ("--data", root, "--output", root.parent / "run", "--config", "tiny", "--steps", 1)
    return rfedge("train", *arguments, own_process=own_process)


def change_frame(folder: Path, **changes: np.ndarray | None) -> None:
    path = folder / frame_name(FRAME)
    with np.load(path) as archive:
        frame = {**archive, **changes}
    path.unlink()
    np.savez(path, **{key: value for key, value in frame.items() if value is not None})


def truncate_frame(folder: Path) -> None:
    content = (folder / frame_name(FRAME)).read_bytes()
    (folder / frame_name(FRAME)).unlink()
    (folder / frame_name(FRAME)).write_bytes(content[: len(content) // 2])


def lose_language(folder: Path) -> None:
    for path in folder.glob("lang_*"):
        shutil.rmtree(path)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (shutil.rmtree, ("/nowhere",))


def plant_code(folder: Path) -> None:
    with (folder / "lang_annotations/auto_lang_ann.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(pickle.dumps(np.array({"language": Hostile()}, dtype=object)))


def other_joints(folder: Path) -> None:
    with np.load(folder / frame_name(FRAME)) as archive:
        robot_obs = archive["robot_obs"].copy()
    robot_obs[7:14] = np.pi
    change_frame(folder, robot_obs=robot_obs)


DAMAGES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "truncated frame": (truncate_frame, "episode_0000020.npz: got an unreadable file", "an unreadable file"),
    "no language": (lose_language, "got no language annotations", "no language annotations"),
    "wrong key": (lambda folder: change_frame(folder, rgb_static=None), "expected 'rgb_static'", "keys ["),
    "NaN action": (
        lambda folder: change_frame(folder, rel_actions=np.full(7, np.nan)),
        "rel_actions of episode_0000020.npz: got NaN or Inf, expected finite values",
        "rel_actions: NaN or Inf",
    ),
    "another robot": (
        lambda folder: change_frame(folder, robot_obs=np.zeros(8)),
        "got shape (8,), expected shape (15,). These demonstrations are of another robot",
        "robot_obs: shape (8,)",
    ),
    "joints of another robot": (
        other_joints,
        "joint 4 in robot_obs of episode_0000020.npz: got 3.142 rad, expected -3.0718 to -0.0698 rad",
        "joint 4 in robot_obs: 3.142 rad",
    ),
    "code in a pickle": (plant_code, "got the class shutil.rmtree", "the class shutil.rmtree"),
    "missing frame": (
        lambda folder: (folder / frame_name(FRAME)).unlink(),
        "got no episode_0000020.npz, expected frames 2 to 66 of 'open_drawer'",
        "no file",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_dataset(tmp_path: Path, damage: str) -> None:
    make, told, listed = DAMAGES[damage]
    folder = tmp_path / "data" / "training"
    write_split(folder, (0,))
    make(folder)
    own_process = damage == "truncated frame"
    assert told in one_line(train(tmp_path / "data", own_process=own_process))
    result = rfedge("demos", "inspect", tmp_path / "data", "--frames", "all", "--json", own_process=own_process)
    assert result.returncode == 1, result.stderr
    findings = json.loads(result.stdout)["findings"]
    assert any(listed in finding["what"] for finding in findings), findings


def test_nothing_that_could_be_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for path, told in (("empty", "got no frame files"), ("file", "got a file"), ("nowhere", "got no folder")):
        assert told in one_line(train(tmp_path / path))
        assert told in one_line(rfedge("demos", "inspect", tmp_path / path))


def test_the_list_on_the_screen_is_bounded_and_the_json_complete(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "training"
    write_split(folder, (0,))
    for number in range(0, 60, 2):
        (folder / frame_name(number)).unlink()
    result = rfedge("demos", "inspect", tmp_path / "data")
    assert result.returncode == 1
    assert "and 10 more; --json lists all" in result.stdout
    document = json.loads(rfedge("demos", "inspect", tmp_path / "data", "--json").stdout)
    assert len(document["findings"]) == 30
    assert document["findings"][0] == {
        "file": "episode_0000000.npz",
        "what": "no file",
        "expected": "a frame that the index names",
    }


def test_a_sound_dataset(tmp_path: Path) -> None:
    write_split(tmp_path / "validation", (0,), repeats=True)
    result = rfedge("demos", "inspect", tmp_path, "--split", "validation", "--frames", 50, "--workers", 2)
    assert result.returncode == 0, result.stderr
    assert "no damage found; 50 of 70 frames and all index files checked" in " ".join(result.stdout.split())
    assert "note: 1 segments repeat" in result.stdout
    assert "scene_obs" in result.stdout
    for path in (tmp_path / "validation").glob("episode_*.npz"):
        with np.load(path) as frame:
            arrays = dict(frame) | {"scene_obs": np.zeros(24)}
        np.savez(path, **arrays)
    sceneless = rfedge("demos", "inspect", tmp_path, "--split", "validation", "--frames", 5).stdout
    assert "scene_obs: zero throughout, the data has no scene" in sceneless
    assert "slider" not in sceneless
    assert "expected `all` or a number" in one_line(rfedge("demos", "inspect", tmp_path, "--frames", "many"))
