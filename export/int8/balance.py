"""Give a MatMul an input that int8 can hold: centre each channel and, where a normalisation before it can take the
factor, scale it.

W x = W diag(s) ((x - c) / s) + W c. The right side rounds (x - c) / s and diag(s) W instead of x and W, and W c stays in
float. A LayerNorm's gain and bias absorb c and s for nothing; the gain of an RMS norm absorbs s. After anything else
(GELU, attention) c is subtracted by a node of its own and s is 1. Where one c for all channels holds the same range (every
channel of a GELU begins at -0.17), it is a whole number of steps, which the CPU form puts into a zero point.

Scales are SmoothQuant's (Xiao et al. 2022): s = a^strength / w^(1 - strength), with the largest magnitudes of the centred
input channel and of its weights; centring before is from Outlier Suppression+ (Wei et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from rfedge.arrays import Float32, Float64
from rfedge.export.int8.observe import ChannelStatistics
from rfedge.export.int8.options import Int8Options
from rfedge.export.int8.ranges import LEVELS
from rfedge.export.passes.graph_queries import is_constant, is_weight_matmul, tensor_shape

_STRENGTHS: Final = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Rounding to the nearest leaves each weight an error of variance step^2 / 12; compensated rounding about a tenth of that
# reaches the output of a MatMul whose inputs vary together.
_COMPENSATED_SHARE: Final = 0.1
_WIDER: Final = 1.02


@dataclass(frozen=True, eq=False)
class Balance:
    """(x - centre) / scale is what will be rounded."""

    centre: Float32  # (channels,)
    scale: Float32  # (channels,)
    gain: ir.Node | None  # absorbs `scale`, a LayerNorm `centre` too; None where nothing can

    @property
    def is_absorbed(self) -> bool:
        """Whether the centre needs no node of its own."""
        return self.gain is not None and self.gain.op_type == "LayerNormalization"

    def peak(self, low: Float32, high: Float32) -> np.float32:
        """Return the largest magnitude after centring and scaling channels with these extremes."""
        return np.float32(np.maximum((high - self.centre) / self.scale, (self.centre - low) / self.scale).max(initial=0.0))


def find_gain(value: ir.Value) -> ir.Node | None:
    """Return the normalisation whose gain can absorb a factor per channel of `value`.

    All readers of `value` must be MatMuls with a weight, because they all receive other numbers.
    """
    node = value.producer()
    if node is None or value.is_graph_output() or node.domain != "":
        return None
    if not all(use.idx == 0 and is_weight_matmul(use.node) for use in value.uses()):
        return None
    return node if _has_gain(node) else None


def _has_gain(node: ir.Node) -> bool:
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        candidates: tuple[int, ...] = (1,) if node.attributes.get_int("axis", -1) in (-1, 2) else ()
    elif node.op_type == "Mul":
        candidates = (0, 1)
    else:
        return False
    shape = node.outputs[0].shape
    channels = None if shape is None else shape[-1]
    for index in candidates:
        gain = node.inputs[index]
        if gain is not None and is_constant(gain) and gain.const_value is not None:
            size = tensor_shape(gain.const_value)
            if len(size) == 1 and size[0] == channels and size[0] > 1:
                return True
    return False


def balance_input(
    value: ir.Value, statistics: ChannelStatistics, weights: Sequence[Float32], options: Int8Options
) -> Balance:
    """Choose centre and scale of `value` (..., channels), which all of `weights` (channels, outputs) multiply."""
    low, high = statistics.low.astype(np.float64), statistics.high.astype(np.float64)
    centre = (low + high) / 2 if options.centre else np.zeros_like(low)
    scale = np.ones_like(low)
    gain = find_gain(value) if options.centre or options.smooth_quant is not None else None
    if gain is not None and options.smooth_quant is not None:
        largest = np.maximum(high - centre, centre - low)
        scale = _smooth_scale(largest, statistics.variance, weights, options)
    if gain is None and options.centre and options.ranges == "min-max":
        centre = _shared_centre(low, high, centre)
    return Balance(centre.astype(np.float32), scale.astype(np.float32), gain)


def _shared_centre(low: Float64, high: Float64, centre: Float64) -> Float64:
    """Return one centre for all channels if that widens the range by less than `_WIDER`, else `centre`.

    It is k steps, with the most k for which 127 steps on either side hold `high` and `low`.
    """
    bottom, top = low.min(), high.max()
    if top <= 0 or bottom >= top:
        return centre
    number = np.floor(LEVELS * (top + bottom) / (top - bottom))
    step = top / (LEVELS + number)
    if number < 1 or LEVELS * step > _WIDER * (high - centre).max():
        return centre
    return np.full_like(centre, number * step)


def _smooth_scale(largest: Float64, variance: Float64, weights: Sequence[Float32], options: Int8Options) -> Float64:
    rows = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0).astype(np.float64)
    # A channel that never varies, or that nobody reads, has nothing to trade.
    used = (largest > 1e-6 * largest.max()) & (rows > 1e-6 * rows.max())
    if not used.any():
        return np.ones_like(largest)

    def scale_of(strength: float) -> Float64:
        scale = np.ones_like(largest)
        scale[used] = largest[used] ** strength / rows[used] ** (1 - strength)
        scale[used] /= np.exp(np.log(scale[used]).mean())
        return scale

    if options.smooth_quant != "search":
        assert options.smooth_quant is not None, "the caller looked"
        return scale_of(options.smooth_quant)
    share = _COMPENSATED_SHARE if options.rounding == "compensated" else 1.0
    candidates = [np.ones_like(largest), *(scale_of(strength) for strength in _STRENGTHS)]
    errors = np.zeros(len(candidates))
    for weight in weights:
        magnitudes = np.abs(weight)
        energies = np.square(weight).sum(axis=1, dtype=np.float64)
        for index, scale in enumerate(candidates):
            input_step = (largest / scale).max() / LEVELS
            steps = (magnitudes * scale[:, None].astype(np.float32)).max(axis=0).astype(np.float64) / LEVELS
            # Mean square error that rounding gives the outputs, were all errors independent of each other.
            errors[index] += input_step**2 / 12 * float(energies @ scale**2)
            errors[index] += share * float((variance / scale**2).sum()) * float(steps @ steps) / 12
    return candidates[int(np.argmin(errors))]
