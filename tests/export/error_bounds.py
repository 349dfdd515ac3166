"""Running error analysis of a float graph: what each output is in float64, and how far a form may be from it.

Every value carries a bound e: the form's value differs by at most e. A bound follows from three things alone.

- The format. A number x rounded to half precision moves by at most u|x|, u = 2^-11 for fp16 and 2^-8 for bf16 (half a
  unit of a mantissa with one bit more than is stored); fp16 below its normal range by 2^-25. A weight rounded to int8
  moves by half a step, largest/127 of its column; in blocks by at most one step of the block, because the end of a range
  is cut or shifted by half a step on top of the rounding. A calibrated activation moves by half a step of its range.
- The operator. Errors of both factors of a MatMul pass through the other one: e = e_x|w| + |x|e_w + e_x e_w. GELU and erf
  stretch an error by at most their steepest slope. Softmax changes p by at most p(exp(2 max e) - 1). LayerNorm is
  differentiable with a Jacobian no larger than |gain|/deviation, and its deviation moves by at most the RMS of the error.
- fp32 itself: 2^-23 for each operation, and for a MatMul for each addition.

Bounds assume that every operator of the graph rounds its result to the format: islands of fp32 can only do better.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Float64 = npt.NDArray[np.float64]
Kind = Literal["exact", "columns", "4-bit blocks", "4-bit symmetric blocks", "8-bit symmetric blocks"]

_FP32: Final = 2.0**-23
_KERNELS: Final = 1e-6  # ONNX Runtime's erf and exp are polynomials
_GELU_SLOPE: Final = 1.13
_ERF_SLOPE: Final = 2 / np.sqrt(np.pi)
_BLOCK: Final = 32
_HALF_LEVELS: Final[dict[str, int]] = {"4-bit symmetric blocks": 8, "8-bit symmetric blocks": 128}


@dataclass(frozen=True)
class Format:
    """How a form rounds.

    Attributes:
        unit: relative rounding of every float that is stored in half precision, 0 for fp32.
        least: its absolute rounding near zero.
        weights: of MatMuls: exact (but for `unit`), int8 by column, or integers by block of 32 inputs of a column.
        calibrated: int8 activations with one step for all frames, from the range of exactly these inputs.
        rounds_rows: the kernel rounds each row of its input to int8 on its own (MatMulNBits at accuracy level 4).
    """

    unit: float = 0.0
    least: float = 0.0
    weights: Kind = "exact"
    calibrated: bool = False
    rounds_rows: bool = False

    def rounding(self, value: Float64, error: Any = 0.0) -> Float64:
        result: Float64 = (self.unit + 4 * _FP32 + _KERNELS) * (np.abs(value) + error) + self.least + _KERNELS * (value != 0)
        return result

    def weight_error(self, weight: Float64) -> Float64:
        """Return a bound for each number of a weight (inputs, outputs)."""
        error = (self.unit + _FP32) * np.abs(weight) + self.least
        if self.weights == "columns":
            return error + np.abs(weight).max(axis=0) / 127 * 0.5
        if self.weights == "exact":
            return error
        steps = np.empty_like(weight)
        for first in range(0, len(weight), _BLOCK):
            block = weight[first : first + _BLOCK]
            if self.weights in _HALF_LEVELS:
                steps[first : first + _BLOCK] = np.abs(block).max(axis=0) / _HALF_LEVELS[self.weights]
            else:
                low, high = np.minimum(block.min(axis=0), 0), np.maximum(block.max(axis=0), 0)
                steps[first : first + _BLOCK] = (high - low) / 15
        return error + steps

    def activation_error(self, value: Float64, error: Float64) -> Float64:
        """Return a bound for each number (rows, inputs) that a MatMul reads."""
        added = (self.unit + _FP32) * (np.abs(value) + error) + self.least
        if self.calibrated:  # what leaves the range by its error is cut back towards the exact number
            added = added + np.abs(value).max() / 127 * 0.5
        if self.rounds_rows:
            added = added + (np.abs(value) + error).max(axis=-1, keepdims=True) / 127 * 0.5
        result: Float64 = error + added
        return result


def bound_errors(
    model: onnx.ModelProto, inputs: dict[str, npt.NDArray[np.float32]], form: Format
) -> dict[str, tuple[Float64, Float64]]:
    """Return (value, bound) of every output of the graph."""
    constants = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer}
    values = {name: (array.astype(np.float64), np.zeros(array.shape)) for name, array in inputs.items()}

    def read(name: str) -> tuple[Float64, Float64]:
        if name in constants:
            return constants[name], form.unit * np.abs(constants[name]) + form.least
        return values[name]

    for node in model.graph.node:
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        values[node.output[0]] = _bound(node, attributes, [read(name) for name in node.input], constants, form)
    return {output.name: values[output.name] for output in model.graph.output}


def _bound(
    node: onnx.NodeProto,
    attributes: dict[str, Any],
    read: list[tuple[Float64, Float64]],
    constants: dict[str, Float64],
    form: Format,
) -> tuple[Float64, Float64]:
    (x, e), *others = read
    if node.op_type in ("MatMul", "Gemm"):
        weight = constants[node.input[1]]
        weight = weight.T if attributes.get("transB") else weight
        value, error = _matmul(x, e, weight, form)
        if len(others) > 1:
            value, error = value + others[1][0], error + others[1][1]
    elif node.op_type == "Add":
        value, error = x + others[0][0], e + others[0][1]
    elif node.op_type == "Mul":
        y, d = others[0]
        value, error = x * y, np.abs(x) * d + np.abs(y) * e + e * d
    elif node.op_type == "Gelu":
        value, error = x * 0.5 * (1 + _erf(x / np.sqrt(2))), _GELU_SLOPE * e
    elif node.op_type == "Erf":
        value, error = _erf(x), _ERF_SLOPE * e
    elif node.op_type == "Softmax":
        powers = np.exp(x - x.max(axis=-1, keepdims=True))
        value = powers / powers.sum(axis=-1, keepdims=True)
        error = np.minimum(value * np.expm1(np.minimum(2 * e.max(axis=-1, keepdims=True), 50.0)), 1.0)
    else:
        assert node.op_type == "LayerNormalization", node.op_type
        gain, bias, epsilon = others[0][0], others[1][0], attributes["epsilon"]
        deviation = x.std(axis=-1, keepdims=True)
        rms = np.sqrt((e**2).mean(axis=-1, keepdims=True))
        value = gain * (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(deviation**2 + epsilon) + bias
        least = np.sqrt(np.maximum(deviation - rms, 0) ** 2 + epsilon)
        error = np.abs(gain) * rms * np.sqrt(x.shape[-1]) / least + sum(np.abs(d) * 8 for _, d in others)
        # a mean of n numbers and differences of close ones, in fp32, before the division
        error = error + 8 * _FP32 * np.abs(gain) * (np.abs(x).max(axis=-1, keepdims=True) / least) * x.shape[-1]
    return value, error + form.rounding(value, error)


def _matmul(x: Float64, e: Float64, weight: Float64, form: Format) -> tuple[Float64, Float64]:
    d_x, d_w = form.activation_error(x, e), form.weight_error(weight)
    error = d_x @ np.abs(weight) + np.abs(x) @ d_w + d_x @ d_w
    sums = (len(weight) + 2) * _FP32 * (np.abs(x) + d_x) @ (np.abs(weight) + d_w)
    return x @ weight, error + sums


def _erf(x: Float64) -> Float64:
    return np.array([math.erf(number) for number in x.ravel()]).reshape(x.shape)
