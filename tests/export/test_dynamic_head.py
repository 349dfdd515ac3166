"""Heads with int8 weights against the same heads in fp32, step after step with their own states."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from rfedge.bundle.precision import BlockPrecision
from rfedge.config import head_of_kind, preset
from rfedge.contract import policy_contract
from rfedge.errors import ConfigError
from rfedge.export.options import ExportOptions
from rfedge.export.parity import graph_call
from rfedge.export.passes.standard import apply_passes, head_passes
from rfedge.export.pipeline import export_checkpoint
from rfedge.export.precisions.head_int8 import quantize_head, store_head_int8
from rfedge.export.proof import verify_parity
from rfedge.export.tensorrt.engine_proof import write_emulation
from rfedge.export.thresholds import THRESHOLDS
from rfedge.export.trace import trace_head
from rfedge.messages import Observation
from rfedge.model.meta import random_policy
from rfedge.recurrence import advance, initial_state
from rfedge.runtimes import EdgePolicy
from rfedge.runtimes.backends.ort import OrtRunner
from tests.errors import raises


@pytest.mark.parametrize(
    ("kind", "time_keeping", "operator"),
    [
        ("lstm", "carry", "DynamicQuantizeLSTM"),
        ("lstm", "window", "DynamicQuantizeLSTM"),
        ("gpt", "window", "MatMulInteger"),
        ("mlp", "carry", "MatMulInteger"),
    ],
)
def test_the_head_acts_nearly_as_in_fp32(tmp_path: Path, kind: str, time_keeping: str, operator: str) -> None:
    base = preset("tiny")
    config = base.model_copy(update={"head": head_of_kind(kind, base.head), "time_keeping": time_keeping})
    contract, path, rng = policy_contract(config).head, tmp_path / "head.onnx", np.random.default_rng(0)
    trace_head(random_policy(config, 1), contract, path)
    apply_passes(path, path, head_passes())
    (quantized,) = quantize_head(path, tmp_path / "head-int8.onnx")
    operators = Counter(node.op_type for node in onnx.load(quantized).graph.node)
    assert operators[operator] >= 4
    assert operators["LSTM"] == 0
    with OrtRunner("head", path, contract) as exact, OrtRunner("head", quantized, contract) as rounded:
        runners, states = (exact, rounded), [initial_state(config)] * 2
        for _ in range(2 * config.window):
            feature = rng.standard_normal((1, config.feature_size)).astype(np.float32)
            steps = [advance(config, runner.infer, feature, state) for runner, state in zip(runners, states, strict=True)]
            states = [step[2] for step in steps]
            np.testing.assert_allclose(steps[0][0], steps[1][0], atol=0.05)
            np.testing.assert_allclose(steps[0][1], steps[1][1], atol=0.05)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [], "no temporary file is left"


@pytest.mark.parametrize("kind", ["lstm", "gpt", "mlp"])
def test_the_head_of_engines_has_int8_weights_and_acts_nearly_as_in_fp32(tmp_path: Path, kind: str) -> None:
    config = preset("tiny").model_copy(update={"head": head_of_kind(kind, preset("tiny").head), "time_keeping": "window"})
    contract, path = policy_contract(config).head, tmp_path / "head.onnx"
    trace_head(random_policy(config, 1), contract, path)
    apply_passes(path, path, head_passes())
    store_head_int8(path, tmp_path / "int8.onnx")
    graph = onnx.load(tmp_path / "int8.onnx").graph
    large = [tensor for tensor in graph.initializer if np.prod(tensor.dims) > 1024 and len(tensor.dims) > 1]
    assert {tensor.data_type for tensor in large if "bias" not in tensor.name} <= {TensorProto.INT8, TensorProto.FLOAT16}
    assert sum(tensor.data_type == TensorProto.INT8 for tensor in large) >= 2
    inputs = contract.sample_inputs(np.random.default_rng(0), dynamic_size=1)
    write_emulation(tmp_path / "int8.onnx", (), tmp_path / "emulated.onnx")
    exact = graph_call(path)(inputs)
    for rounded in (graph_call(tmp_path / name)(inputs) for name in ("int8.onnx", "emulated.onnx")):
        for output in ("pose", "gripper"):
            np.testing.assert_allclose(rounded[output], exact[output], atol=0.05)


def test_int8_heads_of_a_half_bundle_are_stored_so_for_engines(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    options = ExportOptions(precision="fp16", head_precision="int8", num_parity_steps=4, force=True)
    bundle = export_checkpoint(checkpoints["carry"], tmp_path / "bundle", options)
    assert bundle.manifest.precision.blocks["head"] == BlockPrecision(matmuls={"int8-weight": 1}, on_cpus="int8")
    operators = Counter(node.op_type for node in onnx.load(bundle.path("head")).graph.node)
    assert operators["LSTM"] >= 1
    assert operators["DequantizeLinear"] >= 2


def test_a_bundle_with_an_int8_head_is_proved_with_it_and_runs_it(
    checkpoints: dict[str, Path], demonstrations: Path, tmp_path: Path
) -> None:
    options = ExportOptions(precision="fp32", data=demonstrations, head_precision="int8", num_parity_steps=12)
    bundle = export_checkpoint(checkpoints["carry"], tmp_path / "bundle", options)
    assert bundle.graph("head", for_cpu=True).name == "head-cpu.onnx"
    assert bundle.graph("head", for_cpu=False).name == "head.onnx"
    assert bundle.manifest.precision.blocks["head"].on_cpus == "int8"
    parity = bundle.manifest.parity
    assert parity.thresholds == THRESHOLDS["int8"]
    assert parity.inputs.endswith("; checked against the gates of int8")
    assert parity.metrics["min_feature_cosine"] > 0.999999, "the backbone is in fp32"
    assert 1e-5 < parity.metrics["action_max_error"] < 0.05, "the head is not"
    with EdgePolicy.load(bundle.root) as policy:
        assert isinstance(policy.parts.head, OrtRunner)
        assert policy.parts.head._model_path.name == "head-cpu.onnx"
        assert policy.parts.precision == "fp32"
        image = np.zeros((200, 200, 3), np.uint8)
        policy.reset("pull the drawer open")
        assert policy.act(Observation(image, image[:84, :84].copy())).actions.shape == (2, 7)
    again = verify_parity(bundle, checkpoints["carry"], data=demonstrations, num_steps=12, seed=0)
    assert again.manifest.parity.metrics["action_max_error"] > 1e-5, "the check runs the int8 head too"


def test_an_unknown_precision_of_the_head(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    options = ExportOptions(precision="fp32", head_precision="int4")
    with raises(ConfigError, "--head-precision", got="'int4'", expected="one of fp32, int8 (did you mean 'int8'?)"):
        export_checkpoint(checkpoints["carry"], tmp_path / "bundle", options)
