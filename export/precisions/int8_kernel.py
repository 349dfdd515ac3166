"""ONNX Runtime's integer MatMul for CPUs as a node: uint8 activations with zero point 128, int8 weights, floats out."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from rfedge.export.passes.graph_queries import add_constant

KERNEL: Final = "MatMulIntegerToFloat"
DOMAIN: Final = "com.microsoft"
UINT8_ZERO: Final = 128


def make_kernel(
    graph: ir.Graph,
    name: str,
    numbers: ir.Value,
    weight: ir.Value,
    step: ir.Value | np.float32,
    weight_steps: ir.Value,
    *,
    zero_point: ir.Value | None = None,
    bias: ir.Value | None = None,
) -> ir.Node:
    """Return (numbers - 128) step @ weight weight_steps + bias, not yet in the graph, which holds its new constants.

    `numbers` are uint8 (..., inputs), `weight` int8 (inputs, outputs), `weight_steps` float32 (outputs,) or one for all.
    """
    graph.opset_imports.setdefault(DOMAIN, 1)
    if zero_point is None:
        zero_point = add_constant(graph, "uint8_zero_point", np.array(UINT8_ZERO, np.uint8))
    if not isinstance(step, ir.Value):
        step = add_constant(graph, f"{name}/step", np.array(step, np.float32))
    # One per kernel: where uint8 x int8 saturates, onnxruntime rewrites weight and zero point of each kernel to
    # uint8, and fails when it meets one of them a second time (`rfedge.bundle.int8_kernels`).
    int8_zero = add_constant(graph, "int8_zero_point", np.array(0, np.int8))
    inputs = [numbers, weight, step, weight_steps, zero_point, int8_zero, bias]
    return ir.node(KERNEL, inputs, domain=DOMAIN, name=name, num_outputs=1)
