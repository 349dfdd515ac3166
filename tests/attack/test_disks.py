"""Every command that writes, on a full and on a read-only disk: one line, and what was there before stays."""

import hashlib
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rfedge.cli.app import main
from rfedge.config import preset
from tests.cli.import_command import one_line
from tests.conftest import mounted
from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle
from tests.synthetic_demonstrations import write_demonstrations

pytestmark = [pytest.mark.attack, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
QUICK = ("merge", "record", "latency")
COMMANDS = (*QUICK, "train", "pretrain", "export", "demos", "convert", "video", "success", "report", "import")
SMALL = ("latency", "success", "report")  # write few bytes
RESUMABLE = {
    "record": ("run.jsonl",),
    "train": ("out/metrics.jsonl", "out/tensorboard/"),
    "pretrain": ("out/metrics.jsonl", "out/tensorboard/"),
    "demos": ("out/collection.", "out/training/episode_"),
}
NEEDS = {
    "record": "mujoco",
    "video": "mujoco",
    "demos": "mujoco",
    "success": "mujoco",
    "convert": "pyarrow",
    "latency": "torch",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations twice, a checkpoint, a bundle and a LeRobot dataset, on a disk with room."""
    from tests.data.lerobot_dataset import write_lerobot
    from tests.export.conftest import write_checkpoint
    from tests.model.fake_originals import write_originals

    folder = tmp_path_factory.mktemp("inputs")
    write_demonstrations(folder / "one", episodes_per_task=2, num_frames=14)
    write_demonstrations(folder / "two", episodes_per_task=2, num_frames=14, seed=1)
    write_checkpoint(folder / "checkpoint", preset("tiny"))
    write_handmade_bundle(folder / "bundle", tiny_config(chunk_size=4))
    write_lerobot(folder / "lerobot", lengths=(12,), files=(0,))
    originals = write_originals(folder / "originals", "mosaic_gpt")
    (folder / "originals.txt").write_text("\n".join(originals.arguments()))
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte with a result on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mounted(folder, "size=1m"):
        pytest.skip("only root may mount a small disk")
    (folder / "result").write_text("of last week")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(disk: Path, left_bytes: int) -> None:
    with (disk / "others").open("wb", buffering=0) as file:
        while shutil.disk_usage(disk).free > left_bytes:
            file.write(bytes(4096))


def _content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _arguments(command: str, inputs: Path, disk: Path, cache: Path) -> list[str]:
    one, out, bundle = inputs / "one", disk / "out", inputs / "bundle"
    training = ["--config", "tiny", "--data", one, "--output", out, "--steps", "2", "--batch-size", "2", "--cache", cache]
    simulated = ["--task", "open_drawer", "--max-steps", "30", "--threads", "1"]
    words: dict[str, list[object]] = {
        "merge": ["demos", "merge", one, inputs / "two", "--output", out],
        "record": ["run", bundle, *simulated, "--record", disk / "run.jsonl", "--record-frames"],
        "video": ["run", bundle, *simulated, "--video", disk / "run.gif"],
        "latency": ["bench", "latency", bundle, "--iterations", "2", "--warmup", "1", "--output", disk / "latency.json"],
        "train": ["train", *training],
        "pretrain": ["pretrain", *training],
        "export": ["export", inputs / "checkpoint", "--output", out, "--parity-steps", "2"],
        "demos": ["demos", "--tasks", "open_drawer", "--episodes-per-task", "2", "--output", out],
        "convert": ["demos", "convert", inputs / "lerobot", "--from", "lerobot", "--output", out],
        "success": [
            "bench",
            "success",
            bundle,
            "--num",
            "0",
            "--single-tasks",
            "1",
            "--tasks",
            "open_drawer",
            "--output",
            out,
        ],
        "report": ["bench", "report", ROOT / "benchmarks" / "results" / "success_calvin-d_cpu_202611.json", "--output", out],
        "import": ["import", *(inputs / "originals.txt").read_text().split("\n"), "--output", out],
    }
    return [str(word) for word in words[command]]


def _run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def _skip_without(command: str) -> None:
    module = NEEDS.get(command, "torch" if command in ("train", "pretrain", "export", "import") else "numpy")
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


def _commands() -> list[object]:
    return [command if command in QUICK else pytest.param(command, marks=pytest.mark.slow) for command in COMMANDS]


@pytest.mark.parametrize("trouble", ["full", "full in the middle", "read-only"])
@pytest.mark.parametrize("command", _commands())
def test_a_disk_that_will_not_do_is_one_line(
    command: str,
    trouble: str,
    inputs: Path,
    disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _skip_without(command)
    _fill(disk, left_bytes=0 if command in SMALL else 24_576)
    before = _content(disk)
    if trouble == "full in the middle":  # as if another program filled it after the room was looked for
        usage = shutil.disk_usage(disk)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**15))
    if trouble == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    status = _run(_arguments(command, inputs, disk, tmp_path / "cache"))
    if command == "record" and trouble != "read-only":
        assert status == 1, "the robot is not left for a record; the status says that the record is cut"
        assert "cut: No space left on device" in capsys.readouterr().out
    else:
        assert status == 2
        line = one_line(capsys)
        assert any(words in line for words in ("MB free", "a full disk", "cannot be written", "ead-only file system")), line
    after = _content(disk)
    assert {name: after.get(name) for name in before} == before
    new = [name for name in after if name not in before]
    if command in RESUMABLE:  # what was whole before the disk was full is kept, and what goes on from it
        new = [name for name in new if not name.startswith(RESUMABLE[command])]
    assert new == []
