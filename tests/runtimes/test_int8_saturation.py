"""int8 on x86 without VNNI, whose uint8 x int8 kernels saturate: found by a MatMul, avoided, and emulated with qemu."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rfedge.bundle.artifact import load_bundle
from rfedge.bundle.int8_kernels import _PROBE, int8_saturates
from rfedge.config import preset
from rfedge.envs import make_environment
from rfedge.export.options import ExportOptions
from rfedge.export.parity import graph_call
from rfedge.export.pipeline import export_checkpoint
from rfedge.policies import find_bundle
from rfedge.runtimes.doctor.software import probe_onnxruntime
from tests.export.conftest import demonstrations, write_checkpoint  # noqa: F401
from tests.runtimes.int8_rollout import rollout

ROOT = Path(__file__).parents[2]
QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")


def test_the_probe_is_one_integer_matmul() -> None:
    tensors = {
        name: helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("a", TensorProto.UINT8, [None, 2]),
            ("b", TensorProto.INT8, [2, 1]),
            ("y", TensorProto.INT32, [None, 1]),
        )
    }
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    graph = helper.make_graph([node], "g", [tensors["a"], tensors["b"]], [tensors["y"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert onnx.load_from_string(_PROBE).SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("name", ["playtable-jump-step", "playtable-closed-loop"])
def test_shipped_graphs_share_nothing_that_onnxruntime_must_rewrite(name: str) -> None:
    graph = onnx.load(find_bundle(Path(name)) / "backbone-cpu.onnx", load_external_data=False).graph
    int8 = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.INT8}
    uses = Counter(read for node in graph.node for read in node.input if read in int8)
    assert uses
    assert set(uses.values()) == {1}


def test_weights_that_are_only_dequantized_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime's rewrite to exact kernels breaks them, and their MatMul is in float anyway."""
    rng = np.random.default_rng(0)
    weight, scale = rng.integers(-127, 128, (8, 4), dtype=np.int8), rng.random(4, dtype=np.float32)
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["f"], axis=1), helper.make_node("MatMul", ["x", "f"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", 8), ("y", 4)))
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(scale, "s")]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    row = rng.normal(size=(1, 8)).astype(np.float32)
    expected = graph_call(path)({"x": row})["y"]
    monkeypatch.setattr("rfedge.bundle.int8_kernels.int8_saturates", lambda: True)
    np.testing.assert_array_equal(graph_call(path)({"x": row})["y"], expected)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four frames of PlayTable while the arm moves down."""
    path = tmp_path_factory.mktemp("frames") / "frames.npz"
    with make_environment("playtable", scene="D") as world:
        seen = [world.reset()]
        seen += [world.step(np.array([0.3, 0.2, -0.5, 0, 0, 0, 1.0])) for _ in range(3)]
    np.savez(path, static=[o.static for o in seen], gripper=[o.gripper for o in seen], state=[o.state for o in seen])
    return path


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(QEMU is None, reason="no qemu-x86_64 here (Debian package qemu-user-static)")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulated interpreter is this one, which is not for x86-64")
@pytest.mark.skipif(int8_saturates(), reason="this CPU saturates itself: there is nothing to compare with")
def test_an_emulated_cpu_without_vnni_agrees_with_this_one(
    frames: Path,
    demonstrations: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The difference lies within the error that each bundle's own proof recorded."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", preset("tiny"))
    bundles = [find_bundle(Path("playtable-jump-step"))]
    for precision in ("int8", "int8-weight"):
        options = ExportOptions(
            precision=precision, data=demonstrations, num_calibration_frames=16, head_precision="int8", force=True
        )
        bundles.append(export_checkpoint(checkpoint, tmp_path / precision, options).root)
    rollout(frames, tmp_path / "native.json", bundles)
    assert QEMU is not None
    emulated = [QEMU, "-cpu", "Haswell", str(Path(sys.executable).resolve()), "-m", "tests.runtimes.int8_rollout"]
    files = [str(path) for path in (frames, tmp_path / "emulated.json", *bundles)]
    subprocess.run(
        [*emulated, *files],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
    )
    native, found = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("native", "emulated"))
    assert not native["saturates"]
    assert found["saturates"]
    for number, bundle in enumerate(bundles):
        proof = load_bundle(bundle).manifest.parity.metrics
        ours, theirs = (np.array(record["answers"][str(number)]["actions"]) for record in (native, found))
        assert found["answers"][str(number)]["kernels"] == "exact"
        difference = np.abs(ours - theirs)[..., :6]
        assert difference.max() <= proof["action_max_error"]
        assert difference.mean() <= proof["action_mean_error"]


def test_the_doctor_names_saturating_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from rfedge.runtimes.doctor.examination import _onnxruntime_lines

    monkeypatch.setattr("rfedge.runtimes.doctor.software.int8_saturates", lambda: True)
    lines = list(_onnxruntime_lines("onnxruntime", probe_onnxruntime()))
    assert lines[-1].text == "uint8 x int8 saturates on this CPU: rfedge asks for exact ones (session.x64quantprecision=1)"
    assert lines[-1].verdict == "note"
