"""Heads whose weights are int8 with one scale per output, as standard ONNX: a quarter of fp32's bytes in an engine.

    LSTM, MatMul, Gemm read DequantizeLinear(int8, float32 scales)

What is multiplied stays float. CPUs have a head of their own (`dynamic_head`), which multiplies integers.

Requires: a head in fp32 after `head_passes`.
Ensures: inputs and outputs are as before; what is not rounded is stored as `store_half` has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from rfedge.export.passes.graph_files import read_graph, write_graph
from rfedge.export.passes.graph_queries import add_constant, is_constant
from rfedge.export.precisions.block_quantization import quantize_columns
from rfedge.export.precisions.half_storage import store_weights_half

# operator -> the inputs that are weights
_WEIGHTS: Final = {"LSTM": (1, 2), "MatMul": (1,), "Gemm": (1,)}
_SMALLEST: Final = 1024


def store_head_int8(source: Path, target: Path) -> list[Path]:
    """Write the head at `source` to `target` with int8 weights, and return every file written.

    Raises:
        ExportError: a number that is not rounded is beyond fp16's range; the text names it.
    """
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
    new = ir.node("DequantizeLinear", constants, {"axis": axis}, name=f"{weight.name}/dequantize")
    new.metadata_props.update(node.metadata_props)
    output = new.outputs[0]
    output.name, output.type, output.shape = f"{weight.name}/dequantized", weight.type, weight.shape
    graph.insert_before(node, new)
    node.replace_input_with(index, output)
    if not weight.uses():
        del graph.initializers[str(weight.name)]
