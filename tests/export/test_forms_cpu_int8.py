"""Integer kernels by name: the same numbers as the Q/DQ graph they were made of."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rfedge.bundle.int8_kernels import DISABLED_OPTIMIZERS
from rfedge.config import preset
from rfedge.contract import policy_contract
from rfedge.export.precisions.cpu_int8 import LowerInt8, lower_int8
from rfedge.export.precisions.int8_kernel import KERNEL
from rfedge.export.quantize import quantize_int8
from rfedge.export.trace import trace_backbone
from rfedge.model import build_policy
from tests.export.float_graphs import draw, op_types
from tests.tolerances import assert_same_in_fp32

ROWS, INNER, COLUMNS = 5, 16, 12


def quantized_graph(rng: np.random.Generator, *, scales: tuple[float, ...], biases: bool = True) -> ir.Model:
    """One tensor read by as many int8 MatMuls as there are scales, each with a Q/DQ pair of its own."""
    nodes, constants, outputs = [], [], []
    for index, scale in enumerate(scales):
        weight = rng.integers(-127, 128, (INNER, COLUMNS), np.int8)
        constants += [
            numpy_helper.from_array(np.float32(scale), f"scale{index}"),
            numpy_helper.from_array(np.int8(0), f"zero{index}"),
            numpy_helper.from_array(weight, f"weight{index}"),
            numpy_helper.from_array(rng.uniform(0.01, 0.1, COLUMNS).astype(np.float32), f"weight_scale{index}"),
            numpy_helper.from_array(np.zeros(COLUMNS, np.int8), f"weight_zero{index}"),
            numpy_helper.from_array(draw(rng, COLUMNS), f"bias{index}"),
        ]
        pair, of_weight = [f"scale{index}", f"zero{index}"], [f"weight_scale{index}", f"weight_zero{index}"]
        nodes += [
            helper.make_node("QuantizeLinear", ["x", *pair], [f"q{index}"]),
            helper.make_node("DequantizeLinear", [f"q{index}", *pair], [f"dq{index}"]),
            helper.make_node("DequantizeLinear", [f"weight{index}", *of_weight], [f"w{index}"], axis=1),
            helper.make_node("MatMul", [f"dq{index}", f"w{index}"], [f"MatMul{index}"], name=f"MatMul{index}"),
        ]
        outputs.append(f"MatMul{index}")
        if biases:
            nodes.append(helper.make_node("Add", [f"MatMul{index}", f"bias{index}"], [f"y{index}"]))
            outputs[-1] = f"y{index}"
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (ROWS, INNER))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (ROWS, COLUMNS)) for name in outputs],
        constants,
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))


def run(model: ir.Model | Path, inputs: dict[str, np.ndarray], *, disabled: tuple[str, ...] = ()) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    source = str(model) if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled) or None
    )
    return session.run(None, inputs)


@pytest.mark.parametrize("biases", [True, False])
def test_a_matmul_becomes_a_kernel_with_its_bias(biases: bool) -> None:
    rng = np.random.default_rng(0)
    model = quantized_graph(rng, scales=(0.03,), biases=biases)
    inputs = {"x": 3.0 * draw(rng, ROWS, INNER)}  # some beyond 127 steps: both must cut at the same place
    assert (np.abs(inputs["x"]) > 128 * 0.03).any()
    expected = run(model, inputs, disabled=DISABLED_OPTIMIZERS)
    LowerInt8()(model)
    assert op_types(model) == ["QuantizeLinear", KERNEL]
    assert_same_in_fp32(run(model, inputs)[0], expected[0], INNER)


def test_matmuls_of_one_tensor_and_one_scale_share_its_rounding() -> None:
    rng = np.random.default_rng(1)
    model = quantized_graph(rng, scales=(0.03, 0.03, 0.05))
    inputs = {"x": draw(rng, ROWS, INNER)}
    expected = run(model, inputs, disabled=DISABLED_OPTIMIZERS)
    LowerInt8()(model)
    assert sorted(op_types(model)) == [KERNEL] * 3 + ["QuantizeLinear"] * 2
    for ours, theirs in zip(run(model, inputs), expected, strict=True):
        assert_same_in_fp32(ours, theirs, INNER)


def test_what_is_not_this_kind_of_matmul_stays() -> None:
    """A zero point that is not 0, or unsigned activations, would need other arithmetic."""
    model = quantized_graph(np.random.default_rng(2), scales=(0.03,))
    model.graph.initializers["zero0"].const_value = ir.tensor(np.int8(3), name="zero0")
    before = op_types(model)
    result = LowerInt8()(model)
    assert not result.modified
    assert op_types(model) == before


def test_a_backbone_acts_as_before_on_kernels_alone(tmp_path: Path) -> None:
    config = preset("tiny")
    contract = policy_contract(config).backbone
    trace_backbone(build_policy(config, 0).eval(), contract, tmp_path / "fp32.onnx")
    rng = np.random.default_rng(0)
    num_matmuls = quantize_int8(
        tmp_path / "fp32.onnx", tmp_path / "qdq.onnx", (contract.sample_inputs(rng) for _ in range(4))
    )
    assert lower_int8(tmp_path / "qdq.onnx", tmp_path / "cpu.onnx") == num_matmuls
    nodes = onnx.load(tmp_path / "cpu.onnx").graph.node
    assert sum(node.op_type == KERNEL for node in nodes) == num_matmuls
    assert not any(node.op_type == "DequantizeLinear" for node in nodes)
    for tokens in (16, 5):
        inputs = contract.sample_inputs(rng, dynamic_size=tokens)
        (expected,) = run(tmp_path / "qdq.onnx", inputs, disabled=DISABLED_OPTIMIZERS)
        (actual,) = run(tmp_path / "cpu.onnx", inputs)
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
