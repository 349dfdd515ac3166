import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from rfedge.bundle.int8_kernels import DISABLED_OPTIMIZERS
from rfedge.contract import GraphContract, TensorSpec
from rfedge.errors import ArtifactError, BackendUnavailableError, ConfigError, ContractError
from rfedge.runtimes import RuntimeSettings
from rfedge.runtimes.backends import registry
from rfedge.runtimes.backends.ort import OrtRunner, open_bundle
from rfedge.runtimes.backends.registry import open_parts
from tests.errors import raises
from tests.runtimes.handmade_bundle import Oracle, write_handmade_bundle
from tests.tolerances import assert_same_in_fp32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Oracle]:
    path = tmp_path_factory.mktemp("bundles") / "fp32"
    return path, write_handmade_bundle(path)


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = (
        "import sys, rfedge.runtimes\n"
        "heavy = {'torch', 'tensorrt', 'mujoco', 'onnxruntime', 'onnx', 'rich', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_running_a_bundle_does_not_import_torch(bundle: tuple[Path, Oracle]) -> None:
    code = (
        "import sys; from rfedge.runtimes import EdgePolicy\n"
        f"EdgePolicy.load({str(bundle[0])!r}).reset('open the drawer')\n"
        "assert 'torch' not in sys.modules and 'onnx' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("spinning", ["always", "within-call", "never"])
def test_backbone_equals_its_oracle(bundle: tuple[Path, Oracle], spinning: str) -> None:
    path, oracle = bundle
    parts = open_bundle(path, RuntimeSettings(threads=1, spinning=spinning))
    inputs = parts.contract.backbone.sample_inputs(np.random.default_rng(0))
    inputs["text_mask"][0, 5:] = False
    with parts.backbone as runner:
        first, second = runner.infer(inputs)["feature"], runner.infer(inputs)["feature"]
    assert_same_in_fp32(first, oracle.backbone(**inputs), oracle.backbone_terms)
    np.testing.assert_array_equal(first, second)
    assert first is not second
    assert not np.shares_memory(first, second), "a later call would write into a caller's array"


def test_inputs_may_be_read_only_and_strided(bundle: tuple[Path, Oracle]) -> None:
    parts = open_bundle(bundle[0], RuntimeSettings(threads=1))
    inputs = parts.contract.backbone.sample_inputs(np.random.default_rng(0))
    flipped = {**inputs, "image_static": inputs["image_static"][:, ::-1]}
    inputs["image_static"] = inputs["image_static"][:, ::-1].copy()
    inputs["image_static"].flags.writeable = False
    with parts.backbone as runner:
        np.testing.assert_array_equal(runner.infer(inputs)["feature"], runner.infer(flipped)["feature"])


@pytest.mark.parametrize(
    ("name", "change", "got", "expected"),
    [
        ("image_static", lambda x: x[:, :100], "shape (1, 100, 200, 3)", "shape (1, 200, 200, 3) (batch, row, column, rgb)"),
        ("image_gripper", lambda x: x.astype(np.float32), "dtype float32", "dtype uint8"),
        ("text_embedding", lambda x: x * np.nan, "NaN or Inf", "finite values"),
    ],
)
def test_inputs_are_held_to_the_contract(bundle: tuple[Path, Oracle], name: str, change, got: str, expected: str) -> None:  # type: ignore[no-untyped-def]
    parts = open_bundle(bundle[0], RuntimeSettings(threads=1))
    inputs = parts.contract.backbone.sample_inputs(np.random.default_rng(0))
    with parts.backbone as runner, raises(ContractError, f"tensor '{name}'", got=got, expected=expected):
        runner.infer({**inputs, name: change(inputs[name])})


def test_a_missing_input_is_named(bundle: tuple[Path, Oracle]) -> None:
    parts = open_bundle(bundle[0], RuntimeSettings(threads=1))
    with parts.head as runner, raises(ContractError, "head inputs", got="['features']", expected="['c', 'features', 'h']"):
        runner.infer({"features": np.zeros((1, 1, 64), dtype=np.float32)})


def test_input_checks_can_be_switched_off_but_output_checks_stay(bundle: tuple[Path, Oracle]) -> None:
    parts = open_bundle(bundle[0], RuntimeSettings(threads=1, check_inputs=False))
    inputs = parts.contract.backbone.sample_inputs(np.random.default_rng(0))
    inputs["text_embedding"][0, 0, 0] = np.nan
    with parts.backbone as runner, raises(ContractError, "backbone output 'feature'", got="NaN or Inf"):
        runner.infer(inputs)


def test_an_inactive_runner_is_a_bug_of_the_caller(bundle: tuple[Path, Oracle]) -> None:
    parts = open_bundle(bundle[0], RuntimeSettings(threads=1))
    with pytest.raises(RuntimeError, match=r"OrtRunner of the head is not active; call activate\(\) first"):
        parts.head.infer({})
    assert parts.head.effective_settings() == {}
    with parts.head:
        assert parts.head.effective_settings()["providers"] == "CPUExecutionProvider"
    parts.head.deactivate()  # a second time does nothing


def test_a_provider_that_is_not_here_is_refused(bundle: tuple[Path, Oracle]) -> None:
    parts = open_bundle(bundle[0], RuntimeSettings(providers=("TensorrtExecutionProvider",)))
    with raises(BackendUnavailableError, "execution provider", got="TensorrtExecutionProvider", expected="one of..."):
        parts.backbone.activate()


def test_a_graph_of_another_contract_is_refused(bundle: tuple[Path, Oracle]) -> None:
    parts = open_bundle(bundle[0], RuntimeSettings())
    runner = OrtRunner("head", bundle[0] / "backbone.onnx", parts.contract.head)
    with raises(ArtifactError, "graph backbone.onnx inputs", got="['image_gripper'...", expected="['c', 'features', 'h']"):
        runner.activate()


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, bundle: tuple[Path, Oracle]) -> None:
    broken = tmp_path / "head.onnx"
    broken.write_bytes(b"no graph")
    runner = OrtRunner("head", broken, open_bundle(bundle[0], RuntimeSettings()).contract.head)
    with raises(ArtifactError, "graph head.onnx", got="onnxruntime error..."):
        runner.activate()


def _count_operators(path: Path) -> dict[str, int]:
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    return {name: nodes.count(name) for name in nodes}


def test_the_fusion_that_breaks_int8_matmuls_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MatMul + Add becomes Gemm unless the optimizer is disabled: the option must reach onnxruntime."""
    spec_in = TensorSpec(name="x", dtype="float32", shape=(4, 8), axes=("row", "column"))
    spec_out = TensorSpec(name="y", dtype="float32", shape=(4, 8), axes=("row", "column"))
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4, 8))],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(weight[0], "b")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "linear.onnx")
    session_options = OrtRunner._session_options
    for name, disabled in (("with.onnx", ()), ("without.onnx", DISABLED_OPTIMIZERS)):

        def options(runner: OrtRunner, name: str = name) -> ort.SessionOptions:
            made = session_options(runner)
            made.optimized_model_filepath = str(tmp_path / name)
            return made

        monkeypatch.setattr(OrtRunner, "_session_options", options)
        settings = RuntimeSettings(optimization="extended")
        contract = GraphContract(inputs=(spec_in,), outputs=(spec_out,))
        OrtRunner("backbone", tmp_path / "linear.onnx", contract, settings, disabled_optimizers=disabled).activate()
    assert _count_operators(tmp_path / "with.onnx") == {"Gemm": 1}
    assert _count_operators(tmp_path / "without.onnx") == {"MatMul": 1, "Add": 1}


@pytest.mark.parametrize(
    ("requested", "blocks", "name", "backbone_disables", "head_disables"),
    [
        ("fp32", {"vision": "fp32", "head": "fp32"}, "fp32", "", ""),
        ("int8", {"vision.blocks.0": "int8 (3 of 4 MatMuls)", "head": "fp32"}, "int8", ",".join(DISABLED_OPTIMIZERS), ""),
        ("int8", {"vision": "fp32", "head": "int8"}, "int8", "", ",".join(DISABLED_OPTIMIZERS)),
        ("int8", {"vision": "fp32", "head": "fp32"}, "fp32", "", ""),
    ],
)
def test_optimizers_and_name_follow_the_effective_precision(
    tmp_path: Path, requested: str, blocks: dict[str, str], name: str, backbone_disables: str, head_disables: str
) -> None:
    write_handmade_bundle(tmp_path / "b", requested=requested, blocks=blocks)
    parts = open_bundle(tmp_path / "b", RuntimeSettings(threads=1))
    assert parts.precision == name
    with parts.backbone, parts.head:
        assert parts.backbone.effective_settings()["disabled_optimizers"] == backbone_disables
        assert parts.head.effective_settings()["disabled_optimizers"] == head_disables


def test_settings_refuse_unknown_names() -> None:
    with raises(ConfigError, "spinning", got="'nevr'", expected="one of always, within-call, never (did you mean 'never'?)"):
        RuntimeSettings(spinning="nevr")
    with raises(ConfigError, "threads", got=-1):
        RuntimeSettings(threads=-1)
    with raises(ConfigError, "providers", got="none"):
        RuntimeSettings(providers=())


def test_unknown_and_missing_backends_explain_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "one of auto, onnxruntime, openvino, tensorrt, torch (did you mean 'onnxruntime'?)"
    with raises(ConfigError, "backend", got="'onnxruntme'", expected=expected):
        open_parts("onnxruntme", tmp_path, RuntimeSettings())
    monkeypatch.setitem(registry._BACKENDS, "torch", ("not_a_library.at_all", "open", "Install it: pip install it."))
    with raises(BackendUnavailableError, "backend 'torch'", got="no module 'not_a_library'"):
        open_parts("torch", tmp_path, RuntimeSettings())


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_cpu_whose_int8_kernels_saturate_gets_exact_ones_or_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_shared: bool
) -> None:
    """onnxruntime's rewrite to exact kernels gives up where two nodes share a weight: then it is said, and still runs."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (16, 4), dtype=np.int8)
    scalars = {"sa": np.float32(1), "sw": np.ones(4, np.float32), "za": np.uint8(128), "zw": np.int8(0)}
    nodes = [
        helper.make_node("MatMulIntegerToFloat", [name, "w", "sa", "sw", "za", "zw"], [out], domain="com.microsoft")
        for name, out in (("a", "y"), ("b", "z"))[: 1 + is_shared]
    ]
    names, outs = ["a", "b"][: 1 + is_shared], ["y", "z"][: 1 + is_shared]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.UINT8, [1, 16]) for name in names],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in outs],
        [numpy_helper.from_array(weight, "w"), *(numpy_helper.from_array(np.asarray(v), k) for k, v in scalars.items())],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "g.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    spec = GraphContract(
        inputs=tuple(TensorSpec(name=n, dtype="uint8", shape=(1, 16), axes=("batch", "x")) for n in names),
        outputs=tuple(TensorSpec(name=n, dtype="float32", shape=(1, 4), axes=("batch", "y")) for n in outs),
    )
    monkeypatch.setattr("rfedge.bundle.int8_kernels.int8_saturates", lambda: True)
    given = {name: np.full((1, 16), 255, np.uint8) for name in names}
    with OrtRunner("backbone", path, spec) as runner:
        said = runner.effective_settings()["int8_kernels"]
        results = runner.infer(given)
    assert said == ("may saturate" if is_shared else "exact")
    assert ("no exact int8 kernels" in caplog.text) == is_shared
    for result in results.values():
        np.testing.assert_array_equal(result, 127.0 * weight.sum(axis=0, dtype=np.int64)[None])
    monkeypatch.setattr("rfedge.bundle.int8_kernels.int8_saturates", lambda: False)
    with OrtRunner("backbone", path, spec) as runner:
        assert runner.effective_settings()["int8_kernels"] == "exact"
