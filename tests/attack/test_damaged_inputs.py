"""Files that claim too much, paths that are none, sizes that no machine has: one line, and no memory for it."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest

from rfedge.cli.app import main
from rfedge.data.frames import FRAME_KEYS, read_frame, write_frame
from rfedge.errors import ConfigError, DatasetError
from rfedge.jobs.processes import run_jobs
from rfedge.runtimes import RuntimeSettings
from tests.cli.import_command import one_line
from tests.errors import raises
from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle
from tests.synthetic_demonstrations import write_demonstrations

pytestmark = pytest.mark.attack


def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def _write_npz(path: Path, key: str, parts: list[bytes]) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(f"{key}.npy", "w", force_zip64=True) as file,
    ):
        for part in parts:
            file.write(part)


BOMBS = {
    "3 TB by its header": [_header((10**6, 10**6, 3), "|u1"), bytes(100)],
    "half a GB in earnest": [_header((2**29,), "|u1"), *[bytes(1 << 24)] * 32],
    "more than its header says": [_header((200, 200, 3), "|u1"), *[bytes(1 << 24)] * 32],
    "2 GB of header, by its length": [b"\x93NUMPY\x02\x00" + (2**31 - 1).to_bytes(4, "little"), *[b" " * (1 << 24)] * 32],
    "an object": [_header((1,), "|O"), b"cos\nsystem\n"],
    "less than nothing": [_header((-1,), "|u1"), bytes(10)],
}


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bombs")
    paths = {}
    for number, (name, parts) in enumerate(BOMBS.items()):
        paths[name] = folder / f"{number}.npz"
        _write_npz(paths[name], "rgb_static", parts)
        assert paths[name].stat().st_size < 3_000_000
    return paths


@pytest.mark.parametrize("name", BOMBS)
def test_an_array_that_is_no_picture_takes_no_memory(name: str, bombs: dict[str, Path]) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from rfedge.data.frames import read_frame\n"
        "from rfedge.errors import DatasetError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_frame(Path(sys.argv[1]), ('rgb_static',))\nexcept DatasetError as error:\n    print(error)\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(bombs[name])], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    assert "frame " in result.stdout


def test_inspect_survives_them(bombs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_demonstrations(tmp_path / "d", episodes_per_task=2, num_frames=14)
    frames = sorted((tmp_path / "d" / "training").glob("episode_*.npz"))
    for bomb, frame in zip(bombs.values(), frames[::4], strict=False):
        frame.write_bytes(bomb.read_bytes())
    before = psutil.Process().memory_info().rss
    with pytest.raises(SystemExit) as end:
        main(["demos", "inspect", str(tmp_path / "d")])
    assert end.value.code == 1
    assert "Traceback" not in capsys.readouterr().err
    assert psutil.Process().memory_info().rss - before < 300_000_000


def test_a_byte_of_a_frame_is_refused_or_harmless(tmp_path: Path) -> None:
    """Whatever byte changes: the same arrays, or a DatasetError; never another exception, never other numbers."""
    frame = {
        "rgb_static": np.full((200, 200, 3), 7, np.uint8),
        "rgb_gripper": np.full((84, 84, 3), 9, np.uint8),
        "robot_obs": np.linspace(0, 1, 15),
        "scene_obs": np.linspace(0, 1, 24),
        "actions": np.r_[np.zeros(6), 1.0],
        "rel_actions": np.r_[np.zeros(6), -1.0],
    }
    path = tmp_path / "episode_0000000.npz"
    write_frame(path, frame)
    whole, rng, num_refused = path.read_bytes(), np.random.default_rng(0), 0
    for index in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[index] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            read = read_frame(path)
        except DatasetError:
            num_refused += 1
            continue
        assert all(np.array_equal(read[key], frame[key]) for key in FRAME_KEYS), index
    assert num_refused > 0.5 * len(whole) / 3, "the others are dates and the like"


@pytest.mark.parametrize("path", ["x" * 5000, "d/" * 2500, "/dev/null/x", "/proc/x/y", "a\0b"])
@pytest.mark.parametrize(
    "words",
    [
        ["demos", "merge", "DATA", "DATA2", "--output", "PATH"],
        ["demos", "merge", "PATH", "DATA2", "--output", "out"],
        ["demos", "inspect", "PATH"],
        ["inspect", "PATH"],
        ["run", "PATH", "--task", "open_drawer"],
        ["run", "BUNDLE", "--task", "open_drawer", "--max-steps", "2", "--record", "PATH"],
        ["replay", "PATH"],
        ["bench", "report", "PATH", "--output", "out"],
        ["bench", "latency", "BUNDLE", "--iterations", "1", "--output", "PATH"],
        ["serve", "BUNDLE", "--token-file", "PATH"],
    ],
    ids=" ".join,
)
def test_a_path_that_is_none_is_one_line(
    words: list[str], path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    write_handmade_bundle(tmp_path / "b", tiny_config(chunk_size=4))
    for number, name in enumerate(("d", "d2")):
        write_demonstrations(tmp_path / name, episodes_per_task=1, num_frames=2, seed=number)
    names = {"PATH": path, "DATA": str(tmp_path / "d"), "DATA2": str(tmp_path / "d2"), "BUNDLE": str(tmp_path / "b")}
    with pytest.raises(SystemExit) as end:
        main([names.get(word, word) for word in words])
    assert end.value.code == 2
    assert len(one_line(capsys)) < 1000


@pytest.mark.parametrize(
    "content", ["/dev/zero", "[" * 200_000, '{"a":' * 200_000, "null", "NaN", "\ud800"], ids=str.__len__
)
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["replay", "FILE"], "run.jsonl"),
        (["bench", "report", "FILE", "--output", "out"], "a.json"),
        (["demos", "convert", "FOLDER", "--from", "lerobot", "--output", "out"], "meta/info.json"),
        (["demos", "convert", "FOLDER", "--from", "hdf5", "--map-file", "FILE", "--output", "out"], "mapping.yaml"),
        (["export", "FOLDER", "--output", "out"], "config.json"),
        (["inspect", "FOLDER"], "manifest.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_document_without_end_or_bottom_is_one_line(
    words: list[str],
    name: str,
    content: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("rfedge.runtimes.rollout.run_record._MAX_RECORD_BYTES", 1 << 22)
    monkeypatch.setattr("rfedge.io.disk._MAX_FILE_BYTES", 1 << 22)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "in" / name
    file.parent.mkdir(parents=True)
    for other in ("model.safetensors", "tokenizer.json"):
        (tmp_path / "in" / other).touch()
    if content.startswith("/dev"):
        file.symlink_to(content)
    else:
        file.write_text(content, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(SystemExit) as end:
        main([{"FILE": str(file), "FOLDER": str(tmp_path / "in")}.get(word, word) for word in words])
    assert end.value.code == 2
    assert len(one_line(capsys)) < 2000


def test_numbers_that_no_machine_has_are_refused() -> None:
    with raises(ConfigError, "workers", got=1000000000, expected="1 to..."):
        next(run_jobs(str, [1], 10**9))
    with raises(ConfigError, "threads", got=1000000000, expected="0..."):
        RuntimeSettings(threads=10**9)


def test_memory_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    write_handmade_bundle(tmp_path / "b", tiny_config(chunk_size=4))
    command = [sys.executable, "-m", "rfedge.cli.app", "bench", "latency", str(tmp_path / "b"), "--iterations", "1000000000"]
    limited = ["bash", "-c", 'ulimit -v 6000000; exec "$@"', "bash", *command]
    result = subprocess.run(limited, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 2, result.stderr
    assert "rfedge: memory: got not enough" in result.stderr
    assert "Traceback" not in result.stderr
