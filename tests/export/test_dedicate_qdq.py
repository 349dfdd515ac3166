"""Graphs of a few nodes, each with its oracle: onnx's own reference evaluator before and after."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from rfedge.errors import ExportError
from rfedge.export.passes.dedicate_qdq import dedicate_qdq

WEIGHT = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)


def shared_pair() -> onnx.ModelProto:
    """One x -> Q -> DQ -> two products, and the same DQ -> Identity."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"], name="q"),
        helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_dq"], name="dq"),
        helper.make_node("MatMul", ["x_dq", "weight"], ["a"], name="product_a"),
        helper.make_node("MatMul", ["x_dq", "weight"], ["b"], name="product_b"),
        helper.make_node("Identity", ["x_dq"], ["c"], name="float_reader"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "a", "b", "c")]
    constants = {"weight": WEIGHT, "scale": np.float32(0.1), "zero": np.int8(0)}
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "shared", values[:1], values[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_each_product_gets_its_own_pair_and_float_readers_the_float() -> None:
    model = shared_pair()
    x = np.array([[0.234, -0.567]], np.float32)
    before = ReferenceEvaluator(model).run(None, {"x": x})
    assert dedicate_qdq(model, ["product_a", "product_b"]) == 1
    onnx.checker.check_model(model)
    after = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])
    np.testing.assert_array_equal(after[2], x)
    assert not np.array_equal(before[2], x)
    inputs = {node.name: node.input[0] for node in model.graph.node}
    assert inputs["product_a"] != inputs["product_b"]
    assert inputs["float_reader"] == "x"


def test_a_second_run_changes_nothing() -> None:
    model = shared_pair()
    dedicate_qdq(model, ["product_a", "product_b"])
    text = model.SerializeToString()
    assert dedicate_qdq(model, ["product_a", "product_b"]) == 0
    assert model.SerializeToString() == text


def test_a_product_without_a_pair_is_named() -> None:
    model = shared_pair()
    model.graph.node[2].input[0] = "x"
    with pytest.raises(ExportError, match="product product_a: got no Q/DQ pair, expected one on its first input"):
        dedicate_qdq(model, ["product_a", "product_b"])
