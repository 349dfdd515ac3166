import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rfedge.atomic import TEMPORARY_SUFFIX, atomic_directory, atomic_file
from rfedge.errors import ArtifactError


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
    with (
        pytest.raises(
            ArtifactError, match=re.escape(f"{target}: got an existing path, expected a free name. Pass --overwrite")
        ),
        atomic_directory(target),
    ):
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
        "import sys, time; from pathlib import Path; from rfedge.atomic import atomic_directory\n"
        f"with atomic_directory(Path({str(target)!r})) as t:\n"
        "    (t / 'half').write_text('x'); print('writing', flush=True); time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
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
