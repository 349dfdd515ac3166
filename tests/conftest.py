"""Fixtures of more than one folder."""

import os
import signal
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

# Under nohup, or a script's &, this process ignores some of these, and what it starts would too. What has a handler here
# begins there as ever.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)


def mounted(folder: Path, options: str) -> bool:
    """Mount a file system in memory at `folder`; false where this user may not."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="session", autouse=True)
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the traces that all tests, of all workers, share."""
    folder = tmp_path_factory.getbasetemp() / "traces"
    if find_spec("torch") is None:
        yield folder
        return
    from rfedge.export import trace
    from tests.traces import TraceStore

    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parents[1] / folder.name
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "trace_graph", TraceStore(folder))
        yield folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A handmade bundle that acts four steps at once; no test may change it."""
    from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle

    path = tmp_path_factory.mktemp("bundles") / "b"
    write_handmade_bundle(path, tiny_config(chunk_size=4))
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    if not mounted(folder, "size=1m"):
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
