"""Dynamic int8 written weight by weight; the oracle is the graph that ONNX Runtime's own quantizer writes."""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from rfedge.errors import ArtifactError, ExportError
from rfedge.export.passes.graph_files import read_graph, write_graph
from rfedge.export.precisions.dynamic_int8 import make_dynamic_int8
from tests.export.float_graphs import TracedPolicy, draw, graph_of, op_types, open_session, passed_policy, run

node = helper.make_node


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TracedPolicy:
    return passed_policy(tmp_path_factory)


def quantize_theirs(source: Path, target: Path) -> Path:
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(source, target, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)
    return target


def assert_same_graph(ours: Path, theirs: Path) -> None:
    """Every node by its name, attributes and tensors, and every constant by its bytes."""

    def nodes(model: onnx.ModelProto) -> Counter[tuple[object, ...]]:
        return Counter(
            (item.op_type, item.domain, item.name, *item.input, "->", *item.output, *sorted(map(str, item.attribute)))
            for item in model.graph.node
        )

    def constants(model: onnx.ModelProto) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
        return {
            item.name: (item.data_type, tuple(item.dims), numpy_helper.to_array(item).tobytes())
            for item in model.graph.initializer
        }

    mine, others = onnx.load(ours), onnx.load(theirs)
    assert nodes(mine) == nodes(others)
    assert constants(mine) == constants(others)
    assert mine.opset_import == others.opset_import


def test_the_graph_of_a_policy_is_the_quantizers_own(tiny: TracedPolicy, tmp_path: Path) -> None:
    theirs = quantize_theirs(tiny.backbone, tmp_path / "theirs.onnx")
    seen = []
    num_matmuls = make_dynamic_int8(
        tiny.backbone, tmp_path / "ours.onnx", on_weight=lambda done, total: seen.append((done, total))
    )
    assert_same_graph(tmp_path / "ours.onnx", theirs)
    onnx.checker.check_model(onnx.load(tmp_path / "ours.onnx"), full_check=True)
    assert seen[-1][0] == seen[-1][1] == len(seen)
    kernels = []
    for path in (theirs, tmp_path / "ours.onnx"):
        open_session(path, optimized=tmp_path / "optimized.onnx")
        kernels.append(Counter(op_types(read_graph(tmp_path / "optimized.onnx"))))
    assert kernels[0] == kernels[1]
    assert kernels[1]["DynamicQuantizeMatMul"] + kernels[1]["MatMulIntegerToFloat"] == num_matmuls == 32
    np.testing.assert_array_equal(run(tmp_path / "ours.onnx", tiny.inputs)[0], run(theirs, tiny.inputs)[0])


def test_weights_beside_the_graph_are_read_when_they_are_written(
    tiny: TracedPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dynamic_int8(tiny.backbone, tmp_path / "inline.onnx")
    write_graph(read_graph(tiny.backbone), tmp_path / "beside.onnx", inline_limit_bytes=0)
    largest = max(value.const_value.nbytes for value in read_graph(tmp_path / "beside.onnx").graph.initializers.values())
    read_bytes: list[int] = []
    load = ir.ExternalTensor.numpy

    def noted(tensor: ir.ExternalTensor) -> np.ndarray:
        read_bytes.append(tensor.nbytes)
        return load(tensor)

    monkeypatch.setattr(ir.ExternalTensor, "numpy", noted)
    between: list[int] = []

    def on_weight(done: int, total: int) -> None:
        between.append(sum(read_bytes))
        read_bytes.clear()

    make_dynamic_int8(tmp_path / "beside.onnx", tmp_path / "ours.onnx", on_weight=on_weight)
    assert 0 < max(between) <= largest
    monkeypatch.undo()
    assert_same_graph(tmp_path / "ours.onnx", tmp_path / "inline.onnx")


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_a_gemm_becomes_a_matmul_and_a_sum(transposed: int, bias: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    constants = {"w": draw(rng, *((5, 8) if transposed else (8, 5))), "b": draw(rng, 5)}
    constants["w"][0] = 0.0
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    gemm = node("Gemm", inputs, ["y"], transB=transposed)
    write_graph(
        graph_of([gemm], {name: constants[name] for name in inputs[1:]}, {"x": (3, 8)}, ["y"]), tmp_path / "fp32.onnx"
    )
    assert make_dynamic_int8(tmp_path / "fp32.onnx", tmp_path / "ours.onnx") == 1
    bare = onnx.load(tmp_path / "fp32.onnx")
    del bare.graph.value_info[:]  # the quantizer transposes a weight and leaves its noted shape behind
    onnx.save(bare, tmp_path / "bare.onnx")
    assert_same_graph(tmp_path / "ours.onnx", quantize_theirs(tmp_path / "bare.onnx", tmp_path / "theirs.onnx"))
    run(tmp_path / "ours.onnx", {"x": draw(rng, 3, 8)})


def test_what_is_shared_is_quantized_once(tmp_path: Path) -> None:
    """Two MatMuls of one tensor and two of one weight."""
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("MatMul", ["x", "v"], ["b"]),
        node("MatMul", ["a", "w"], ["c"]),
        node("Add", ["b", "c"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    model = graph_of(nodes, {"w": draw(rng, 4, 4), "v": draw(rng, 4, 4)}, {"x": (4, 4)}, ["y"])
    write_graph(model, tmp_path / "fp32.onnx")
    assert make_dynamic_int8(tmp_path / "fp32.onnx", tmp_path / "ours.onnx") == 3
    assert_same_graph(tmp_path / "ours.onnx", quantize_theirs(tmp_path / "fp32.onnx", tmp_path / "theirs.onnx"))
    assert op_types(read_graph(tmp_path / "ours.onnx")).count("DynamicQuantizeLinear") == 2


def test_a_weight_that_something_else_reads_stays_for_it(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "v"], ["b"]), node("Add", ["b", "v"], ["y"])]
    weight, x = draw(np.random.default_rng(0), 4, 4), draw(np.random.default_rng(1), 4, 4)
    write_graph(graph_of(nodes, {"v": weight}, {"x": (4, 4)}, ["y"]), tmp_path / "fp32.onnx")
    make_dynamic_int8(tmp_path / "fp32.onnx", tmp_path / "ours.onnx")
    assert {"v", "v_quantized"} < set(read_graph(tmp_path / "ours.onnx").graph.initializers)
    np.testing.assert_allclose(run(tmp_path / "ours.onnx", {"x": x})[0], x @ weight + weight, atol=0.1)


def test_a_gemm_with_a_factor_and_a_matmul_of_two_tensors_stay(tmp_path: Path) -> None:
    nodes = [
        node("Gemm", ["x", "w"], ["a"], alpha=0.5),
        node("MatMul", ["w", "a"], ["b"]),
        node("MatMul", ["a", "b"], ["y"]),
    ]
    model = graph_of(nodes, {"w": draw(np.random.default_rng(0), 4, 4)}, {"x": (4, 4)}, ["y"])
    write_graph(model, tmp_path / "fp32.onnx")
    assert make_dynamic_int8(tmp_path / "fp32.onnx", tmp_path / "ours.onnx") == 0
    assert_same_graph(tmp_path / "ours.onnx", quantize_theirs(tmp_path / "fp32.onnx", tmp_path / "theirs.onnx"))


def test_what_cannot_be_quantized_is_named(tmp_path: Path) -> None:
    weight = draw(np.random.default_rng(0), 4, 4)
    weight[1, 2] = np.inf
    write_graph(graph_of([node("MatMul", ["x", "w"], ["y"])], {"w": weight}, {"x": (2, 4)}, ["y"]), tmp_path / "fp32.onnx")
    with pytest.raises(ExportError, match=r"^weight 'w': got NaN or Inf, expected finite numbers"):
        make_dynamic_int8(tmp_path / "fp32.onnx", tmp_path / "ours.onnx")
    with pytest.raises(ArtifactError, match=r"absent.onnx: got .*expected an ONNX file"):
        make_dynamic_int8(tmp_path / "absent.onnx", tmp_path / "ours.onnx")
    assert [item.name for item in tmp_path.iterdir()] == ["fp32.onnx"]
