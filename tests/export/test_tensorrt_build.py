"""`rfedge build` as it is lived with: what is kept or made again, and what kills, full disks and copies leave behind."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from rfedge.bundle.artifact import load_bundle
from rfedge.bundle.engines import engine_folders, find_engine
from rfedge.cli.app import app
from rfedge.errors import ArtifactError, BackendUnavailableError, ConfigError
from rfedge.export.tensorrt import pipeline
from rfedge.messages import Observation
from rfedge.nvidia.tensorrt import TensorRt
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from tests.errors import raises
from tests.export.tensorrt_bundles import build_ahead, device, load_rtx, vouch_for
from tests.runtimes.handmade_bundle import INSTRUCTIONS, write_handmade_bundle


@pytest.fixture(scope="module")
def rtx() -> TensorRt:
    return load_rtx()


@pytest.fixture
def bundle(rtx: TensorRt, tmp_path: Path) -> Path:
    """A bundle of a few nodes, so that an engine takes half a second."""
    path = tmp_path / "bundle"
    write_handmade_bundle(path)
    return path


def test_a_foreign_stale_or_damaged_engine_is_never_opened(rtx: TensorRt, bundle: Path) -> None:
    opened = load_bundle(bundle)
    with raises(ArtifactError, "backbone engine of ...", got="none", expected="one for tensorrt-rtx ... on SM86"):
        find_engine(opened, "backbone", device(86, rtx.version))
    folder = build_ahead(bundle)[0].planned.folder
    find_engine(opened, "backbone", device(86, rtx.version))
    for target, reason in (
        (device(89, rtx.version), "(built for SM86, this is SM89)"),
        (device(86, "1.8.0"), f"(built with tensorrt-rtx {rtx.version}, this is 1.8.0)"),
        (device(86, "10.3.0", module="tensorrt"), "(built with tensorrt-rtx, this is tensorrt)"),
    ):
        with raises(ArtifactError, got=f"... {reason}"):
            find_engine(opened, "backbone", target)
    with raises(ArtifactError, got="...(no head)"):
        find_engine(opened, "head", device(86, rtx.version))

    shutil.copytree(folder, folder.with_name("renamed-by-hand-sm89"))
    with raises(ArtifactError, got="renamed-by-hand-sm89 (built for SM86, this is SM89)..."):
        find_engine(opened, "backbone", device(89, rtx.version))
    shutil.rmtree(folder.with_name("renamed-by-hand-sm89"))

    change_graph(bundle)
    changed = load_bundle(bundle)
    with raises(ArtifactError, got="...(stale: the graph changed..."):
        find_engine(changed, "backbone", device(86, rtx.version))
    assert build_ahead(bundle)[0].planned.reason is not None

    plan = folder / "backbone.plan"
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)
    with raises(ArtifactError, got="...backbone.plan with sha256 ... instead of..."):
        find_engine(changed, "backbone", device(86, rtx.version))
    assert str(build_ahead(bundle)[0].planned.reason).startswith("damaged: backbone.plan with sha256")
    (folder / "engine.json").write_text("{")
    with raises(ArtifactError, got="...engine.json with ...Run `rfedge build`..."):
        find_engine(changed, "backbone", device(86, rtx.version))


def change_graph(bundle: Path) -> None:
    """Give the backbone another doc string and vouch for it: a new graph under the same name."""
    model = onnx.load(bundle / "backbone.onnx")
    model.doc_string = "changed"
    onnx.save(model, bundle / "backbone.onnx")
    vouch_for(bundle, "backbone.onnx")


def test_only_what_is_not_up_to_date_is_built(bundle: Path) -> None:
    first = build_ahead(bundle)[0]
    assert first.built
    assert first.planned.reason == "no engine yet"
    again = build_ahead(bundle)[0]
    assert not again.built
    assert again.record == first.record
    assert again.audit == first.audit
    limited = build_ahead(bundle, workspace_mib=64)[0]
    assert limited.planned.reason == "builder settings changed: workspace_mib 0 -> 64"
    change_graph(bundle)
    assert str(build_ahead(bundle, workspace_mib=64)[0].planned.reason).startswith("the graph changed (")
    # the other stage keeps its engine while one is made anew
    both = build_ahead(bundle, stage="all", workspace_mib=64)
    assert [result.built for result in both] == [False, True]
    assert find_engine(load_bundle(bundle), "backbone", device(86, first.record.key.target.version))[1] == both[0].record
    assert build_ahead(bundle, overwrite=True, workspace_mib=64)[0].built
    assert len(json.loads((both[0].planned.folder / "audit.json").read_bytes())) == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from rfedge.export.tensorrt import pipeline
from rfedge.cli.app import main
moment, number = sys.argv[1], int(sys.argv[2])
if moment == "writing":
    def killed(path):
        assert path.stat().st_size > 500_000, "the plan is on disk, engine.json is not"
        os.kill(os.getpid(), number)
    pipeline.hash_file = killed
else:
    build = pipeline.build_engine
    def killed(*arguments, progress, **options):
        def report(done, total):
            if done > 100:
                os.kill(os.getpid(), number)
            progress(done, total)
        return build(*arguments, progress=report, **options)
    pipeline.build_engine = killed
main(["build", sys.argv[3], "--aot", "sm86", "--stage", "backbone", "--overwrite"])
"""


@pytest.mark.parametrize(
    ("moment", "number"), [("building", signal.SIGKILL), ("building", signal.SIGTERM), ("writing", signal.SIGKILL)]
)
def test_a_killed_build_leaves_the_old_engine_and_nothing_else_that_counts(
    rtx: TensorRt, bundle: Path, moment: str, number: signal.Signals
) -> None:
    before = build_ahead(bundle)[0]
    code = [sys.executable, "-c", KILLED, moment, str(int(number)), str(bundle)]
    result = subprocess.run(code, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == (-number if number == signal.SIGKILL else 143), result.stderr
    assert "Traceback" not in result.stderr
    opened = load_bundle(bundle)
    assert engine_folders(opened) == [before.planned.folder]
    assert find_engine(opened, "backbone", device(86, rtx.version))[1] == before.record
    with EdgePolicy.load(bundle) as policy:
        policy.reset(INSTRUCTIONS[0])
        assert policy.act(Observation(np.zeros((200, 200, 3), np.uint8), np.zeros((84, 84, 3), np.uint8))).actions.any()
    leftovers = list((bundle / "engines").glob("*.partial")) + list((bundle / "engines").glob(".*.partial"))
    assert bool(leftovers) == (moment == "writing")
    assert build_ahead(bundle, overwrite=True)[0].built
    assert list((bundle / "engines").glob(".*.partial")) == []


def test_a_full_disk_is_one_line_and_the_bundle_stays_usable(
    rtx: TensorRt, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = build_ahead(bundle)[0].record
    real = pipeline.atomic_directory

    @contextmanager
    def full(path: Path, *, overwrite: bool) -> Iterator[Path]:
        with real(path, overwrite=overwrite) as folder:
            (folder / "backbone.plan").symlink_to("/dev/full")  # the kernel answers every write: no space left
            yield folder

    monkeypatch.setattr(pipeline, "atomic_directory", full)
    with raises(ArtifactError, got="a full disk", expected="room for what is written"):
        build_ahead(bundle, overwrite=True)
    assert find_engine(load_bundle(bundle), "backbone", device(86, rtx.version))[1] == record
    assert list((bundle / "engines").glob(".*.partial")) == []

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))  # type: ignore[attr-defined]
        patch.setattr(pipeline, "build_engine", None)  # it is not even started
        with raises(ArtifactError, got="No space left on device (0 MiB free)"):
            build_ahead(bundle, overwrite=True)

    @contextmanager
    def read_only(path: Path, *, overwrite: bool) -> Iterator[Path]:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        yield path

    monkeypatch.setattr(pipeline, "atomic_directory", read_only)
    with raises(ArtifactError, got="Read-only file system", expected="a folder that can be written", remedy="Copy..."):
        build_ahead(bundle, overwrite=True)


def test_two_builds_of_one_bundle_do_not_run_together(bundle: Path) -> None:
    (bundle / "engines").mkdir()
    with (bundle / "engines" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with raises(ArtifactError, got="another build that is running", expected="one at a time"):
            build_ahead(bundle)
    assert build_ahead(bundle)[0].built


def test_the_command_reports_as_a_table_and_as_one_json_document(bundle: Path) -> None:
    arguments = ["build", str(bundle), "--aot", "sm86", "--stage", "backbone"]
    planned = CliRunner().invoke(app, [*arguments, "--dry-run", "--json"])
    assert planned.exit_code == 0, planned.output
    assert [row["reason"] for row in json.loads(planned.stdout)] == ["no engine yet"]
    assert not (bundle / "engines").exists(), "a dry run writes nothing"
    started = time.monotonic()
    result = CliRunner().invoke(app, [*arguments, "--json", "--strict"])
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)[0]
    assert row["built"] is True
    assert row["precisions"] == {"fp32": 1}
    assert Path(row["plan"]).stat().st_size == row["size_bytes"]
    assert 0 < row["build_seconds"] < time.monotonic() - started
    table = CliRunner().invoke(app, arguments, env={"COLUMNS": "140"})
    assert "up to date" in table.stdout
    assert "1 fp32" in table.stdout
    assert table.stdout.splitlines()[-1].startswith("not for Jetson: ")


def test_mistakes_of_the_command_are_one_line(bundle: Path) -> None:
    def line(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["build", str(bundle), *arguments])
        assert isinstance(result.exception, (ConfigError, ArtifactError, BackendUnavailableError)), result.output
        return str(result.exception)

    assert "--aot: got '86', expected compute capabilities such as sm86,sm89" in line("--aot", "86")
    assert "--aot: got --target tensorrt, expected --target tensorrt-rtx" in line("--aot", "sm86", "--target", "tensorrt")
    assert "did you mean 'tensorrt-rtx'?" in line("--aot", "sm86", "--target", "tensorrt_rtx")
    assert "--stage: got 'hed', expected one of backbone, head, all (did you mean 'head'?)" in line(
        "--aot", "sm86", "--stage", "hed"
    )
    (bundle / "backbone.onnx").write_bytes(b"")
    assert "bundle file backbone.onnx" in line("--aot", "sm86")
