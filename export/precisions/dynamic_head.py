"""Heads with int8 weights, for CPUs: what bounds a head is reading its weights, and these are a quarter of fp32's.

onnxruntime's own dynamic quantization: LSTMs become DynamicQuantizeLSTM, MatMuls MatMulInteger, weights have one scale per
output; activations get their range in every call, so no calibration is needed. A graph for ONNX Runtime on a CPU alone.

Requires: a head in fp32, its weights in the file (`head_passes`).
Ensures: inputs and outputs are as before.
"""

from __future__ import annotations

import logging
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic

from rfedge.io.atomic import atomic_file


def quantize_head(source: Path, target: Path) -> list[Path]:
    """Write the head at `source` to `target` with int8 weights, and return the file written."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends a preprocessing that ours has done
    try:
        with atomic_file(target) as temporary:
            quantize_dynamic(
                source,
                temporary,
                op_types_to_quantize=["LSTM", "MatMul"],
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
    finally:
        logger.setLevel(level)
    return [target]
