import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rfedge.errors import ArtifactError
from rfedge.io.atomic import TEMPORARY_SUFFIX, atomic_directory, atomic_file
from rfedge.io.disk import check_room
from tests.errors import raises


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(f".*{TEMPORARY_SUFFIX}"))


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with pytest.raises(RuntimeError, match="half-way"), atomic_directory(target) as temporary:
        (temporary / "a").write_text("1")
        raise RuntimeError("half-way")
    assert list(tmp_path.iterdir()) == []
    with atomic_directory(target) as temporary:
        (temporary / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert leftovers(tmp_path) == []


def test_an_existing_folder_is_kept_unless_overwrite_is_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_text("1")
    with raises(ArtifactError, target, got="an existing path", expected="a free name"), atomic_directory(target):
        pass
    with pytest.raises(RuntimeError), atomic_directory(target, overwrite=True):
        raise RuntimeError
    assert (target / "old").exists()
    with atomic_directory(target, overwrite=True) as temporary:
        (temporary / "new").write_text("2")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert leftovers(tmp_path) == []


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert target.read_text() == "old"
    with atomic_file(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert leftovers(tmp_path) == []


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    code = (
        "import sys, time; from pathlib import Path; from rfedge.io.atomic import atomic_directory\n"
        f"with atomic_directory(Path({str(target)!r})) as t:\n"
        "    (t / 'half').write_text('x'); print('writing', flush=True); time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "writing\n"
    with atomic_directory(tmp_path / "bundle-2"):
        pass  # a running writer of another name is left alone
    assert len(leftovers(tmp_path)) == 1
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()
    assert not target.exists()
    assert len(leftovers(tmp_path)) == 1
    with atomic_directory(target):
        pass
    assert leftovers(tmp_path) == []


def test_what_a_folder_holds_can_be_read_by_others(tmp_path: Path) -> None:
    """A bundle that root wrote is run by the robot's user."""
    with atomic_directory(tmp_path / "bundle") as folder:
        (folder / "engines").mkdir(mode=0o700)
        private = folder / "engines" / "weights"
        private.touch(mode=0o600)
    assert stat.filemode((tmp_path / "bundle" / "engines").stat().st_mode) == "drwxr-xr-x"
    assert stat.filemode((tmp_path / "bundle" / "engines" / "weights").stat().st_mode) == "-rw-r--r--"


@pytest.mark.attack
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_writer_of_one_folder_is_refused_at_its_start(tmp_path: Path, overwrite: bool) -> None:
    target = tmp_path / "out"
    with atomic_directory(target, overwrite=overwrite) as slow:
        (slow / "who").write_text("slow")
        with (
            raises(ArtifactError, target, got="another process that writes it", expected="one at a time"),
            atomic_directory(target, overwrite=overwrite),
        ):
            pytest.fail("two writers")
        with atomic_directory(tmp_path / "other"):
            pass
    assert (target / "who").read_text() == "slow"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


@pytest.mark.attack
def test_what_came_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for content in ((), ("mine",)):
        with raises(ArtifactError, got="an existing path"), atomic_directory(target) as folder:
            (folder / "ours").touch()
            target.mkdir()
            for name in content:
                (target / name).touch()
        assert [path.name for path in target.iterdir()] == list(content)
        assert leftovers(tmp_path) == []
        for path in target.iterdir():
            path.unlink()
        target.rmdir()


@pytest.mark.attack
def test_several_may_fill_a_cache_at_once(tmp_path: Path) -> None:
    target = tmp_path / "cache"
    with atomic_directory(target, overwrite=True, shared=True) as one:
        (one / "a").touch()
        with atomic_directory(target, overwrite=True, shared=True) as two:
            (two / "a").touch()
    assert [path.name for path in target.iterdir()] == ["a"]


@pytest.mark.attack
@pytest.mark.parametrize("has_rename", [True, False])
def test_replacing_leaves_no_moment_without_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_rename: bool
) -> None:
    if not has_rename:
        monkeypatch.setattr("rfedge.io.atomic._rename", lambda *_: False)
    target = tmp_path / "out"
    for number in range(3):
        with atomic_directory(target, overwrite=True) as folder:
            (folder / str(number)).touch()
        assert [path.name for path in target.iterdir()] == [str(number)]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with raises(ArtifactError, got="an existing path"), atomic_directory(target):
        pass


@pytest.mark.attack
@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o077, 0o600, 0o700), (0o002, 0o664, 0o775)])
def test_modes_are_those_of_the_user(tmp_path: Path, umask: int, file_mode: int, folder_mode: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_file(tmp_path / "f") as temporary:
            temporary.unlink()
            temporary.touch(mode=0o600)  # as safetensors does
        with atomic_directory(tmp_path / "d") as folder:
            (folder / "in").mkdir(mode=0o700)
            (folder / "in" / "f").touch(mode=0o600)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("f", "d/in/f", "d", "d/in")]
    assert modes == [file_mode, file_mode, folder_mode, folder_mode]


@pytest.mark.attack
def test_a_full_disk_is_one_line_and_what_was_there_stays(small_disk: Path) -> None:
    file, folder = small_disk / "file", small_disk / "folder"
    for _ in range(2):
        with atomic_file(file) as temporary:
            temporary.write_text("old")
        with atomic_directory(folder, overwrite=True) as temporary:
            (temporary / "old").touch()
    parts = {
        "got": "a full disk",
        "expected": "room for what is written",
        "remedy": "...what was there before is unchanged.",
    }
    with raises(ArtifactError, file, **parts), atomic_file(file) as temporary:
        temporary.write_bytes(bytes(2_000_000))
    with raises(ArtifactError, folder, **parts), atomic_directory(folder, overwrite=True) as temporary:
        (temporary / "new").write_bytes(bytes(2_000_000))
    assert (file.read_text(), [path.name for path in folder.iterdir()]) == ("old", ["old"])
    assert sorted(path.name for path in small_disk.iterdir()) == ["file", "folder"]


@pytest.mark.attack
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a\0b", "a NUL character"),
        ("x" * 5000, "file name too long"),
        ("file/x", "file exists"),
        ("file/x/y", "not a directory"),
    ],
)
def test_a_path_that_is_none_is_one_line(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    for writer in (atomic_file, atomic_directory):
        with raises(ArtifactError, got=words) as error, writer(tmp_path / name):
            pass
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 600
    with pytest.raises(ArtifactError):
        check_room(tmp_path / name, 10**18, what="a large thing")


@pytest.mark.attack
def test_room_is_looked_for_before_the_work(small_disk: Path) -> None:
    check_room(small_disk / "a" / "b", 500_000, what="little")
    with raises(ArtifactError, f"{small_disk}/a/b", got="1 MB free", expected="about 3 MB for the checkpoint"):
        check_room(small_disk / "a" / "b", 3_000_000, what="the checkpoint")
