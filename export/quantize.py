"""int8 (W8A8) as explicit Q/DQ: symmetric, zero-point 0, per-channel weights, per-tensor activations.

Only the inputs of a product are quantized, never its output: the integer kernel then returns floats, one rounding less
per product, and it is the form that both ONNX Runtime (MatMulIntegerToFloat) and TensorRT fuse. Attention products
(q·k, p·v), LayerNorm, softmax, the patch convolution and the camera resize stay in float.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from rfedge.errors import ConfigError, did_you_mean, explain
from rfedge.export.passes.dedicate_qdq import dedicate_qdq
from rfedge.export.precision_audit import block_of_node, weight_products

__all__ = ["quantizable_products", "quantize_int8"]

Inputs = dict[str, npt.NDArray[Any]]
# The camera resize is exact in float; of the robot's state a product of six numbers is all there is to save.
_ALWAYS_FLOAT = ("preprocess", "proprioception")


def quantizable_products(model: onnx.ModelProto, keep_float: Sequence[str] = ()) -> list[str]:
    """Return the names of the products to quantize.

    Every product with a weight, except those of the camera resize, of the robot's state, and of blocks that begin with one
    of `keep_float`.

    Raises:
        ConfigError: no block begins with one of `keep_float`.
    """
    blocks = {node.name: block_of_node(node) for node in weight_products(model)}
    for prefix in keep_float:
        if not any(block.startswith(prefix) for block in blocks.values()):
            raise ConfigError(
                explain(
                    "keep_float",
                    got=repr(prefix),
                    expected=did_you_mean(prefix, dict.fromkeys(blocks.values())),
                    remedy="Name a block or the beginning of several.",
                )
            )
    return [name for name, block in blocks.items() if not block.startswith((*_ALWAYS_FLOAT, *keep_float))]


def quantize_int8(
    source: Path,
    target: Path,
    inputs: Iterable[Inputs],
    *,
    keep_float: Sequence[str] = (),
    on_frame: Callable[[], None] = lambda: None,
) -> int:
    """Write the Q/DQ form of the graph at `source` to `target`, with min-max ranges over `inputs`.

    Args:
        source: fp32 graph.
        target: where the quantized graph goes.
        inputs: calibration inputs, one mapping of graph input -> array a frame.
        keep_float: beginnings of the names of blocks that stay in fp32.
        on_frame: called after each frame, for a progress bar.

    Returns:
        The number of products that were quantized.
    """
    model = onnx.load(source, load_external_data=False)
    products = quantizable_products(model, keep_float)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantizer recommends a pre-processing step that the dynamo exporter has done
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_static(
                source,
                target,
                _Reader(inputs, on_frame),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["MatMul", "Gemm"],
                nodes_to_quantize=products,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "MatMulConstBOnly": True,
                    "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                    # Not "CalibMaxIntermediateOutputs": onnxruntime 1.31 forgets, without a word, every frame it clears.
                    # Min-max keeps two numbers per tensor and frame, so memory is bounded without it.
                },
            )
    finally:
        root.setLevel(level)
    quantized = onnx.load(target)
    dedicate_qdq(quantized, products)
    onnx.save(quantized, target)
    return len(products)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, inputs: Iterable[Inputs], on_frame: Callable[[], None]) -> None:
        self._frames: Iterator[Inputs] = iter(inputs)
        self._on_frame = on_frame

    def get_next(self) -> Inputs | None:
        frame = next(self._frames, None)
        if frame is not None:
            self._on_frame()
            return {name: np.ascontiguousarray(array) for name, array in frame.items()}
        return None
