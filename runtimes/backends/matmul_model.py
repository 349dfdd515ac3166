"""ONNX models of one MatMul and of many small operators: to try a provider, and to time this machine's kernels."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from rfedge.arrays import Array

if TYPE_CHECKING:
    from onnx import NodeProto

MatMulKind = Literal["fp32", "int8"]

_IR_VERSION: Final = 8  # read by every onnxruntime that is supported
_OPSET: Final = 17


def matmul_model(kind: MatMulKind, rows: int, inner: int, columns: int) -> bytes:
    """Return the bytes of a model `y = x @ w` with x float32 (rows, inner), y float32 (rows, columns).

    With "int8" both factors pass through Q/DQ pairs, symmetric, as in an exported int8 graph.
    """
    from onnx import helper  # here: what runs a policy does without it

    weight = np.linspace(-1.0, 1.0, inner * columns, dtype=np.float32).reshape(inner, columns)
    if kind == "fp32":
        nodes, constants = [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}
    else:
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"]),
            helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_dq"]),
            helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["w_dq"]),
            helper.make_node("MatMul", ["x_dq", "w_dq"], ["y"]),
        ]
        constants = {"w": np.round(weight * 127).astype(np.int8)}
        constants |= {"scale": np.array(1 / 127, np.float32), "zero": np.array(0, np.int8)}
    return _model("MatMul", nodes, constants, [rows, inner], [rows, columns])


def chain_model(length: int) -> bytes:
    """Return the bytes of a model that takes the maximum of `x`, float32 (1, 16), and another constant `length` times."""
    from onnx import helper

    names = ["x", *(f"x{index}" for index in range(1, length)), "y"]
    pairs = itertools.pairwise(names)
    nodes = [helper.make_node("Max", [before, f"c{index}"], [after]) for index, (before, after) in enumerate(pairs)]
    constants = {f"c{index}": np.array([index], np.float32) for index in range(length)}
    return _model("chain", nodes, constants, [1, 16], [1, 16])


def _model(name: str, nodes: list[NodeProto], constants: dict[str, Array], shape: list[int], result: list[int]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, result)],
        [numpy_helper.from_array(array, key) for key, array in constants.items()],
    )
    opset = [helper.make_opsetid("", _OPSET)]
    return bytes(helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=opset).SerializeToString())
