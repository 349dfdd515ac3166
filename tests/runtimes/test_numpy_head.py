"""Heads in NumPy against ONNX Runtime, on the graphs that the exporter writes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rfedge.config import PolicyConfig, head_of_kind, preset
from rfedge.contract import policy_contract
from rfedge.errors import ArtifactError, BackendUnavailableError
from rfedge.export.precisions.half_storage import store_half
from rfedge.export.trace import trace_head
from rfedge.model.meta import random_policy
from rfedge.runtimes.backends.graph_values import read_valued_graph
from rfedge.runtimes.backends.numpy_head import NumpyHead
from rfedge.runtimes.backends.ort import OrtRunner
from rfedge.runtimes.policy.head import HeadRuntime
from tests.tolerances import assert_same_in_fp32, head_terms


def _config(kind: str, time_keeping: str = "carry") -> PolicyConfig:
    base = preset("tiny")
    return base.model_copy(update={"head": head_of_kind(kind, base.head), "time_keeping": time_keeping})


@pytest.fixture(scope="module", params=["lstm carry", "lstm window", "gpt window", "mlp carry"])
def head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PolicyConfig, Path]:
    """A head as a bundle stores it: in fp16, computing in fp32."""
    config = _config(*request.param.split())
    folder = tmp_path_factory.mktemp("head")
    trace_head(random_policy(config, 3), policy_contract(config).head, folder / "traced.onnx")
    store_half(folder / "traced.onnx", folder / "head.onnx")
    return config, folder / "head.onnx"


def test_it_acts_as_onnxruntime_does(head: tuple[PolicyConfig, Path]) -> None:
    config = head[0]
    contract = policy_contract(config).head
    rng = np.random.default_rng(0)
    with NumpyHead(head[1], contract) as ours, OrtRunner("head", head[1], contract) as reference:
        runtimes = [HeadRuntime(runner, config) for runner in (ours, reference)]
        states = [runtime.initial_state() for runtime in runtimes]
        for _ in range(2 * config.window + 1):
            feature = rng.standard_normal((1, config.feature_size)).astype(np.float32)
            steps = [runtime.step(feature, state) for runtime, state in zip(runtimes, states, strict=True)]
            states = [step[2] for step in steps]
            assert_same_in_fp32(steps[0][0], steps[1][0], head_terms(config))
            assert_same_in_fp32(steps[0][1], steps[1][1], head_terms(config))
            assert_same_in_fp32(states[0].h, states[1].h, head_terms(config))


def test_no_later_call_writes_into_what_was_returned(head: tuple[PolicyConfig, Path]) -> None:
    contract = policy_contract(head[0]).head
    rng = np.random.default_rng(1)
    with NumpyHead(head[1], contract) as runner:
        inputs = [contract.sample_inputs(rng, dynamic_size=1) for _ in range(2)]
        first = runner.infer(inputs[0])
        kept = {name: array.copy() for name, array in first.items()}
        runner.infer(inputs[1])
        for name, array in kept.items():
            np.testing.assert_array_equal(first[name], array)


def test_what_no_input_reaches_is_computed_once(head: tuple[PolicyConfig, Path]) -> None:
    with NumpyHead(head[1], policy_contract(head[0]).head) as runner:
        num_nodes = len(read_valued_graph(head[1]).nodes)
        assert 0 < len(runner._steps) < num_nodes
        assert not any(array.dtype == np.float16 for array in runner._constants.values())


def _save(path: Path, op: str, domain: str = "", **attributes: object) -> Path:
    node = helper.make_node(op, ["x"], ["y"], domain=domain, **attributes)
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    onnx.save(helper.make_model(helper.make_graph([node], "one", shapes[:1], shapes[1:])), path)
    return path


def test_an_operator_that_is_not_here(tmp_path: Path) -> None:
    path = _save(tmp_path / "head.onnx", "FastGelu", "com.microsoft")
    runner = NumpyHead(path, policy_contract(_config("mlp")).head)
    words = r"^graph head.onnx: got operator com.microsoft.FastGelu, expected one of Add, .* Run this head on onnxruntime\.$"
    with pytest.raises(BackendUnavailableError, match=words):
        runner.activate()


def test_every_way_onnx_stores_a_tensor(tmp_path: Path) -> None:
    arrays = {
        "raw": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.array([1.5, -2.0], np.float16),
        "integers": np.array([[-1, 2]], np.int64),
        "flags": np.array([True, False]),
        "double": np.array(2.5),
    }
    tensors = [numpy_helper.from_array(arrays["raw"], "raw")]
    types = {
        "half": TensorProto.FLOAT16,
        "integers": TensorProto.INT64,
        "flags": TensorProto.BOOL,
        "double": TensorProto.DOUBLE,
    }
    for name, kind in types.items():
        tensors.append(helper.make_tensor(name, kind, arrays[name].shape, arrays[name].flatten().tolist()))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])
    node = helper.make_node("Identity", ["raw"], ["y"])
    onnx.save(helper.make_model(helper.make_graph([node], "weights", [], [output], tensors)), tmp_path / "weights.onnx")
    found = read_valued_graph(tmp_path / "weights.onnx").weights
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_attributes_of_every_kind(tmp_path: Path) -> None:
    path = _save(tmp_path / "x.onnx", "Anything", numbers=[3, -1], one=-2, real=0.5, word="tanh", words=["a", "b"], zero=0)
    attributes = read_valued_graph(path).nodes[0].attributes
    assert attributes == {"numbers": (3, -1), "one": -2, "real": 0.5, "word": "tanh", "words": ("a", "b"), "zero": 0}


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x3a\xff\x01"])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "head.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"^graph head.onnx: got .*, expected an ONNX file with its weights inside"):
        read_valued_graph(path)
