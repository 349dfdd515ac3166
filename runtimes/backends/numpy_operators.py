"""The ONNX operators that heads are made of, in NumPy. Source: ONNX operator schemas, opset 20.

Each takes a node's attributes and returns a function of its inputs; an absent optional input is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rfedge.runtimes.backends.graph_values import Attribute

__all__ = ["OPERATORS", "Operator"]

Array = npt.NDArray[Any]
# inputs -> outputs
Operator = Callable[..., tuple[Array, ...]]
Attributes = Mapping[str, Attribute]

_DTYPES: Final = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64}


def _plain(function: Callable[..., Array]) -> Callable[[Attributes], Operator]:
    """An operator without attributes and with one output."""
    return lambda attributes: lambda *inputs: (np.asarray(function(*inputs)),)


def _integer(attributes: Attributes, name: str, default: int) -> int:
    value = attributes.get(name, default)
    assert isinstance(value, int)
    return value


def _sigmoid(x: Array) -> Array:
    """In one formula that cannot overflow: 0.5 * (1 + tanh(x / 2))."""
    half = x.dtype.type(0.5)
    return np.asarray(np.tanh(x * half) * half + half)


def _cast(attributes: Attributes) -> Operator:
    dtype = _DTYPES[_integer(attributes, "to", 1)]
    return lambda x: (x.astype(dtype),)


def _concat(attributes: Attributes) -> Operator:
    axis = _integer(attributes, "axis", 0)
    return lambda *parts: (np.concatenate(parts, axis=axis),)


def _constant(attributes: Attributes) -> Operator:
    value = attributes["value"]
    assert isinstance(value, np.ndarray)
    return lambda: (value,)


def _expand(attributes: Attributes) -> Operator:
    del attributes
    return lambda x, shape: (np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(size) for size in shape))),)


def _gather(attributes: Attributes) -> Operator:
    axis = _integer(attributes, "axis", 0)
    return lambda x, indices: (np.take(x, indices, axis=axis),)


def _gelu(attributes: Attributes) -> Operator:
    if attributes.get("approximate") == "tanh":
        scale = math.sqrt(2.0 / math.pi)
        return lambda x: ((0.5 * x * (1.0 + np.tanh(scale * (x + 0.044715 * x * x * x)))).astype(x.dtype),)
    error_function = np.frompyfunc(math.erf, 1, 1)  # exact; a head has a few thousand of them
    return lambda x: ((0.5 * x * (1.0 + error_function(x * math.sqrt(0.5)).astype(x.dtype))).astype(x.dtype),)


def _gemm(attributes: Attributes) -> Operator:
    alpha, beta = float(attributes.get("alpha", 1.0)), float(attributes.get("beta", 1.0))  # type: ignore[arg-type]
    flip_a, flip_b = _integer(attributes, "transA", 0), _integer(attributes, "transB", 0)

    def call(a: Array, b: Array, c: Array | None = None) -> tuple[Array, ...]:
        matmul = (a.T if flip_a else a) @ (b.T if flip_b else b)
        if alpha != 1.0:
            matmul = matmul * matmul.dtype.type(alpha)
        return (matmul if c is None else matmul + (c if beta == 1.0 else c * c.dtype.type(beta)),)

    return call


def _layer_normalization(attributes: Attributes) -> Operator:
    epsilon, axis = float(attributes.get("epsilon", 1e-5)), _integer(attributes, "axis", -1)  # type: ignore[arg-type]

    def call(x: Array, scale: Array, bias: Array | None = None) -> tuple[Array, ...]:
        axes = tuple(range(axis % x.ndim, x.ndim))
        centred = x - x.mean(axis=axes, keepdims=True)
        deviation = np.sqrt((centred * centred).mean(axis=axes, keepdims=True) + x.dtype.type(epsilon))
        scaled = centred / deviation * scale
        return (scaled if bias is None else scaled + bias,)

    return call


def _lstm(attributes: Attributes) -> Operator:
    """Layout 0, one direction. ONNX orders gates input, output, forget, cell.

    What the gates take from the inputs is one MatMul over all steps, so its weights are read once a call; what they take
    from the state is one MatMul a step.
    """
    size = _integer(attributes, "hidden_size", 0)
    if attributes.get("direction", "forward") != "forward" or attributes.get("layout", 0) != 0:
        raise ValueError("LSTM with another direction or layout")

    def call(
        x: Array, w: Array, r: Array, b: Array | None, lengths: Array | None, h: Array, c: Array, *peepholes: Array
    ) -> tuple[Array, ...]:
        assert lengths is None
        assert not peepholes
        steps, batch, _ = x.shape
        given = x.reshape(steps * batch, -1) @ w[0].T
        if b is not None:
            given += b[0, : 4 * size] + b[0, 4 * size :]
        given = given.reshape(steps, batch, 4 * size)
        recurrent = r[0].T
        hidden, cell = h[0], c[0]
        outputs = np.empty((steps, 1, batch, size), x.dtype)
        for step in range(steps):
            gates = given[step] + hidden @ recurrent
            opened = _sigmoid(gates[:, : 3 * size])
            cell = opened[:, 2 * size :] * cell + opened[:, :size] * np.tanh(gates[:, 3 * size :])
            hidden = opened[:, size : 2 * size] * np.tanh(cell)
            outputs[step, 0] = hidden
        return outputs, hidden[None], cell[None]

    return call


def _reshape(attributes: Attributes) -> Operator:
    keep_zero = bool(_integer(attributes, "allowzero", 0))

    def call(x: Array, shape: Array) -> tuple[Array, ...]:
        sizes = [int(size) for size in shape]
        if not keep_zero:
            sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
        return (x.reshape(sizes),)

    return call


def _shape(attributes: Attributes) -> Operator:
    start, end = attributes.get("start", 0), attributes.get("end")
    return lambda x: (np.array(x.shape[start:end], np.int64),)


def _slice(attributes: Attributes) -> Operator:
    del attributes

    def call(
        x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
    ) -> tuple[Array, ...]:
        chosen = list(range(len(starts))) if axes is None else [int(axis) % x.ndim for axis in axes]
        strides = [1] * len(starts) if steps is None else [int(step) for step in steps]
        index = [slice(None)] * x.ndim
        for axis, start, end, stride in zip(chosen, starts, ends, strides, strict=True):
            index[axis] = slice(int(start), int(end), stride)
        return (x[tuple(index)],)

    return call


def _softmax(attributes: Attributes) -> Operator:
    axis = _integer(attributes, "axis", -1)

    def call(x: Array) -> tuple[Array, ...]:
        powers = np.exp(x - x.max(axis=axis, keepdims=True))
        return (powers / powers.sum(axis=axis, keepdims=True),)

    return call


def _split(attributes: Attributes) -> Operator:
    axis, parts = _integer(attributes, "axis", 0), attributes.get("num_outputs")

    def call(x: Array, sizes: Array | None = None) -> tuple[Array, ...]:
        if sizes is None:
            assert isinstance(parts, int)
            return tuple(np.array_split(x, parts, axis=axis))
        return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=axis))

    return call


def _squeeze(attributes: Attributes) -> Operator:
    del attributes
    return lambda x, axes=None: (np.squeeze(x, None if axes is None else tuple(int(axis) for axis in axes)),)


def _transpose(attributes: Attributes) -> Operator:
    order = attributes.get("perm")
    return lambda x: (np.transpose(x, order),)  # type: ignore[arg-type]


def _unsqueeze(attributes: Attributes) -> Operator:
    del attributes
    return lambda x, axes: (np.expand_dims(x, tuple(int(axis) for axis in axes)),)


OPERATORS: Final[Mapping[str, Callable[[Attributes], Operator]]] = {
    "Add": _plain(np.add),
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "Div": _plain(np.divide),
    "Expand": _expand,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Identity": _plain(np.asarray),
    "LSTM": _lstm,
    "LayerNormalization": _layer_normalization,
    "MatMul": _plain(np.matmul),
    "Mul": _plain(np.multiply),
    "Relu": _plain(lambda x: np.maximum(x, x.dtype.type(0))),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _plain(_sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _plain(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(np.subtract),
    "Tanh": _plain(np.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
