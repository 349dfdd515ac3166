"""ONNX Runtime's switches that decide whether a Q/DQ graph runs on integer kernels; exporter and runtime share them."""

from __future__ import annotations

from typing import Final

__all__ = ["DISABLED_OPTIMIZERS", "INTEGER_KERNELS"]

DISABLED_OPTIMIZERS: Final = (
    # Merging MatMul and Add into Gemm hides the Q/DQ pattern from the kernels: 2.4 times slower on playtable-small.
    "MatMulAddFusion",
    # It merges equal QuantizeLinear nodes, and a product whose Q has several readers stays in fp32.
    "CommonSubexpressionElimination",
)
INTEGER_KERNELS: Final = ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "DynamicQuantizeMatMul")
