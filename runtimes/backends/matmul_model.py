"""A one-MatMul ONNX model made without the `onnx` package: to try a provider, and to time this machine's kernels."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from rfedge.runtimes.backends.protobuf import encode_bytes, encode_varint_field

__all__ = ["MatMulKind", "matmul_model"]

MatMulKind = Literal["fp32", "int8"]

_IR_VERSION: Final = 8
_OPSET: Final = 17
_FLOAT: Final = 1
_INT8: Final = 3


def matmul_model(kind: MatMulKind, rows: int, inner: int, columns: int) -> bytes:
    """Return the bytes of a model `y = x @ w` with x float32 (rows, inner), y float32 (rows, columns).

    With "int8" both factors pass through Q/DQ pairs, symmetric, as in an exported int8 graph.
    """
    weight = np.linspace(-1.0, 1.0, inner * columns, dtype=np.float32).reshape(inner, columns)
    if kind == "fp32":
        nodes = [_node("MatMul", "MatMul", ("x", "w"), "y")]
        constants = [_tensor("w", weight, _FLOAT)]
    else:
        nodes = [
            _node("QuantizeLinear", "quantize", ("x", "scale", "zero"), "x_q"),
            _node("DequantizeLinear", "dequantize", ("x_q", "scale", "zero"), "x_dq"),
            _node("DequantizeLinear", "weight", ("w", "scale", "zero"), "w_dq"),
            _node("MatMul", "MatMul", ("x_dq", "w_dq"), "y"),
        ]
        constants = [
            _tensor("w", np.round(weight * 127).astype(np.int8), _INT8),
            _tensor("scale", np.array(1 / 127, np.float32), _FLOAT),
            _tensor("zero", np.array(0, np.int8), _INT8),
        ]
    graph = encode_bytes(
        7,
        *(encode_bytes(1, node) for node in nodes),
        encode_bytes(2, b"MatMul"),
        *(encode_bytes(5, tensor) for tensor in constants),
        encode_bytes(11, _value("x", (rows, inner))),
        encode_bytes(12, _value("y", (rows, columns))),
    )
    opset = encode_bytes(8, encode_bytes(1, b""), encode_varint_field(2, _OPSET))
    return encode_varint_field(1, _IR_VERSION) + graph + opset


def _node(op: str, name: str, inputs: tuple[str, ...], output: str) -> bytes:
    read = b"".join(encode_bytes(1, item.encode()) for item in inputs)
    return read + encode_bytes(2, output.encode()) + encode_bytes(3, name.encode()) + encode_bytes(4, op.encode())


def _tensor(name: str, array: npt.NDArray[np.generic], element_type: int) -> bytes:
    dims = b"".join(encode_varint_field(1, size) for size in array.shape)
    return dims + encode_varint_field(2, element_type) + encode_bytes(8, name.encode()) + encode_bytes(9, array.tobytes())


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(encode_bytes(1, encode_varint_field(1, size)) for size in shape)
    tensor_type = encode_varint_field(1, _FLOAT) + encode_bytes(2, dims)
    return encode_bytes(1, name.encode()) + encode_bytes(2, encode_bytes(1, tensor_type))
