"""Whatever goes wrong in `rfedge build`: one line, exit 2, and the bundle acts as it did before."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from rfedge.bundle.artifact import load_bundle
from rfedge.bundle.engines import engine_folders, find_engine
from rfedge.cli.app import main
from rfedge.errors import ArtifactError
from rfedge.export.tensorrt import builder, pipeline
from rfedge.messages import Observation
from rfedge.nvidia.tensorrt import TensorRt
from rfedge.runtimes.backends.base import RuntimeSettings
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from tests.export.tensorrt_bundles import build_ahead, device, load_rtx, vouch_for
from tests.runtimes.handmade_bundle import INSTRUCTIONS, write_handmade_bundle

Fails = Callable[..., str]


@pytest.fixture(scope="module")
def rtx() -> TensorRt:
    return load_rtx()


@pytest.fixture
def bundle(rtx: TensorRt, tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    write_handmade_bundle(path)
    return path


def act(path: Path) -> np.ndarray:
    """One step of the bundle in onnxruntime, every file verified."""
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    with EdgePolicy.load(path, settings=RuntimeSettings(threads=1)) as policy:
        policy.reset(INSTRUCTIONS[0])
        return policy.act(Observation(image, image[:84, :84].copy())).actions


@pytest.fixture
def fails(bundle: Path, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run the command on the bundle; return its one line once everything else is checked."""

    def run(*arguments: str) -> str:
        before = act(bundle)
        files = sorted(path.name for path in bundle.iterdir() if path.name != "engines")
        engines = engine_folders(load_bundle(bundle))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["build", str(bundle), *arguments])
        captured = capsys.readouterr()
        assert stopped.value.code == 2
        assert captured.out == ""
        lines = [line for line in captured.err.splitlines() if line.startswith("rfedge: ")]
        assert len(lines) == 1
        assert "Traceback" not in captured.err
        np.testing.assert_array_equal(act(bundle), before)
        assert sorted(path.name for path in bundle.iterdir() if path.name != "engines") == files
        assert engine_folders(load_bundle(bundle)) == engines
        assert list((bundle / "engines").glob(".*.partial")) == []
        return lines[0]

    return run


def test_an_unknown_target_stage_or_length(fails: Fails) -> None:
    assert "--target: got 'tensorflow', expected one of tensorrt, tensorrt-rtx" in fails("--target", "tensorflow")
    assert "ahead-of-time target: got sm87, expected one of sm75, sm80" in fails("--aot", "sm87")
    assert "ahead-of-time target: got sm999" in fails("--aot", "sm999")
    assert "--aot: got 'orin', expected compute capabilities such as sm86,sm89" in fails("--aot", "orin")
    assert "got 'eyes', expected one of backbone, head, all" in fails("--aot", "sm86", "--stage", "eyes")
    assert "--text-lengths: got 4,4, expected rising numbers" in fails("--aot", "sm86", "--text-lengths", "4,4")


def test_a_target_that_is_not_here(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "target tensorrt: got import of tensorrt halted" in fails()


@pytest.mark.parametrize(
    ("element_type", "sm", "words"),
    [
        (TensorProto.BFLOAT16, 75, "got bf16 in weight odd, expected SM80 or newer for bf16"),
        (TensorProto.INT4, 75, "got int4 in weight odd, expected SM80 or newer for int4"),
        (TensorProto.FLOAT8E4M3FN, 86, "got fp8 in weight odd, expected SM89 or newer for fp8"),
        (TensorProto.FLOAT8E5M2, 120, "got fp8 (e5m2) in weight odd, expected fp32, fp16, bf16 or int8"),
    ],
)
def test_a_precision_that_the_target_lacks(
    bundle: Path, fails: Fails, element_type: TensorProto.DataType, sm: int, words: str
) -> None:
    model = onnx.load(bundle / "backbone.onnx")
    model.opset_import[0].version = 21  # int4 came with it
    model.graph.initializer.append(helper.make_tensor("odd", element_type, [2, 2], np.zeros(4).tolist()))
    onnx.save(model, bundle / "backbone.onnx")
    vouch_for(bundle, "backbone.onnx")
    assert f"SM{sm}: {words}" in fails("--aot", f"sm{sm}")


def test_an_operator_that_the_parser_refuses(bundle: Path, fails: Fails) -> None:
    model = onnx.load(bundle / "backbone.onnx")
    last = next(node for node in model.graph.node if node.output[0] == "feature")
    last.output[0] = "before"
    model.graph.node.append(helper.make_node("Mod", ["before", "large"], ["feature"], name="odd", fmod=1))
    model.graph.initializer.append(helper.make_tensor("large", TensorProto.FLOAT, [], [1e6]))
    model.graph.node.append(helper.make_node("Unique", ["feature"], ["unread"], name="unique"))
    onnx.save(model, bundle / "backbone.onnx")
    vouch_for(bundle, "backbone.onnx")
    line = fails("--aot", "sm86")
    assert "graph backbone.onnx: got node unique (Unique)" in line
    assert "operators that tensorrt-rtx" in line


def test_a_full_disk_and_one_that_cannot_be_written(bundle: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    build_ahead(bundle)
    real = pipeline.atomic_directory

    @contextmanager
    def full(path: Path, *, overwrite: bool) -> Iterator[Path]:
        with real(path, overwrite=overwrite) as folder:
            (folder / "backbone.plan").symlink_to("/dev/full")  # the kernel answers every write: no space left
            yield folder

    monkeypatch.setattr(pipeline, "atomic_directory", full)
    rebuild = ("--aot", "sm86", "--stage", "backbone", "--overwrite")
    assert "got a full disk, expected room" in fails(*rebuild)

    @contextmanager
    def locked(path: Path, *, overwrite: bool) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        yield path

    monkeypatch.setattr(pipeline, "atomic_directory", locked)
    assert "got Permission denied, expected a folder that can be written" in fails(*rebuild)
    monkeypatch.undo()
    assert not build_ahead(bundle)[0].built, "the engine that was there is still right"


def test_an_engine_of_another_bundle_device_or_version_is_refused_and_made_anew(
    bundle: Path, rtx: TensorRt, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    write_handmade_bundle(other, seed=1)
    build_ahead(other)
    shutil.copytree(other / "engines", bundle / "engines")
    before = act(bundle)
    opened = load_bundle(bundle)
    for target, reason in (
        (device(86, rtx.version), "(stale: the graph changed ("),
        (device(89, rtx.version), "(built for SM86, this is SM89)"),
        (device(86, "10.3.0", module="tensorrt"), "(built with tensorrt-rtx, this is tensorrt)"),
        (device(86, "0.1"), f"(built with tensorrt-rtx {rtx.version}, this is 0.1)"),
    ):
        with pytest.raises(ArtifactError) as caught:
            find_engine(opened, "backbone", target)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(act(bundle), before)
    assert str(build_ahead(bundle)[0].planned.reason).startswith("the graph changed (")
    plan, _ = find_engine(opened, "backbone", device(86, rtx.version))
    assert plan.read_bytes() != (other / plan.relative_to(bundle)).read_bytes()
    np.testing.assert_array_equal(act(bundle), before)


def test_a_timing_cache_that_the_library_does_not_take_costs_a_note_only() -> None:
    """The two calls of TensorRT's configuration, with its answers to a foreign and to a damaged cache."""

    class Configuration:
        def __init__(self, *, reads: bool) -> None:
            self.reads, self.taken = reads, b"nothing"

        def create_timing_cache(self, data: bytes) -> bytes | None:
            return None if data == b"damaged" and not self.reads else data

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            assert ignore_mismatch is False, "a cache of another device would choose wrong kernels"
            if cache == b"damaged":
                return False
            self.taken = cache
            return True

    for reads in (True, False):
        configuration = Configuration(reads=reads)
        assert len(builder._use_timing_cache(configuration, b"damaged")) == 1
        assert configuration.taken == b"", "it starts anew"
    for data in (b"right", None):
        configuration = Configuration(reads=True)
        assert builder._use_timing_cache(configuration, data) == []
        assert configuration.taken == (data or b"")
