"""Heads with int8 weights, a quarter of fp32's bytes: what bounds a head is reading its weights.

For CPUs onnxruntime's own dynamic quantization (DynamicQuantizeLSTM, MatMulInteger), whose activations get their range in
every call, so no calibration is needed. For engines standard ONNX, whose LSTM, MatMul and Gemm read DequantizeLinear(int8,
float32 scales) and multiply floats.

Requires: a head in fp32, its weights in the file (`head_passes`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir
from onnxruntime.quantization import QuantType, quantize_dynamic

from rfedge.export.passes.graph_files import read_graph, write_graph
from rfedge.export.passes.graph_queries import add_constant, drop_unread, insert_dequantize, is_constant
from rfedge.export.precisions.block_quantization import quantize_columns
from rfedge.export.precisions.half_storage import store_weights_half
from rfedge.io.atomic import atomic_file


def quantize_head(source: Path, target: Path) -> list[Path]:
    """Write the head at `source` to `target` with int8 weights, and return the file written."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends a preprocessing that ours has done
    try:
        with atomic_file(target) as temporary:
            quantize_dynamic(
                source, temporary, op_types_to_quantize=["LSTM", "MatMul"], per_channel=True, weight_type=QuantType.QInt8
            )
    finally:
        logger.setLevel(level)
    return [target]


# operator -> the inputs that are weights
_WEIGHTS: Final = {"LSTM": (1, 2), "MatMul": (1,), "Gemm": (1,)}
_SMALLEST: Final = 1024


def store_head_int8(source: Path, target: Path) -> list[Path]:
    """Write the head at `source` to `target` with int8 weights, and return every file written."""
    model = read_graph(source)
    graph = model.graph
    for node in list(graph):
        for index in _WEIGHTS.get(node.op_type, ()):
            weight = node.inputs[index]
            tensor = weight.const_value if weight is not None and is_constant(weight) else None
            if weight is not None and tensor is not None and tensor.size > _SMALLEST:
                _dequantize(graph, node, index, weight, tensor.numpy())
    store_weights_half(graph)
    return write_graph(model, target)


def _dequantize(graph: ir.Graph, node: ir.Node, index: int, weight: ir.Value, array: np.ndarray) -> None:
    """Put DequantizeLinear between a weight and the node; outputs are the second axis, or the first of a turned matrix."""
    axis = 0 if node.attributes.get_int("transB", 0) else 1
    by_output = np.moveaxis(array, axis, -1)
    numbers, scales = quantize_columns(by_output.reshape(-1, array.shape[axis]))
    numbers = np.moveaxis(numbers.reshape(by_output.shape), -1, axis)
    constants = [add_constant(graph, f"{weight.name}/int8", numbers), add_constant(graph, f"{weight.name}/scale", scales)]
    read = insert_dequantize(graph, node, weight, constants, name=f"{weight.name}/dequantize", axis=axis)
    node.replace_input_with(index, read)
    drop_unread(graph, weight)
