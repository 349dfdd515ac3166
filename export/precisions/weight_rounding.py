"""One weight as small integers: on one scale per output, or on one per block of inputs, to the nearest or by GPTQ."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from rfedge.export.int8.matmuls import MatMul
from rfedge.export.int8.rounding import round_compensated
from rfedge.export.precisions.block_quantization import (
    BLOCK_SIZE,
    compensate_blocks,
    dequantize_blocks,
    quantize_blocks,
    quantize_columns,
)

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
_HALF: Final = np.finfo(np.float16)


class WeightRounding(NamedTuple):
    """How one weight is rounded: to 8 bits on one scale per column, or to 4 bits in blocks."""

    bits: int

    @property
    def by_column(self) -> bool:
        return self.bits == 8

    def reason_to_keep(self, matmul: MatMul) -> str | None:
        """Return why no kernel takes the weight; None where one does."""
        if matmul.node.op_type == "Gemm" and not self.by_column:
            return "a Gemm, for which there is no kernel with packed weights"
        if not self.by_column and matmul.num_channels % BLOCK_SIZE:
            return f"{matmul.num_channels} inputs, which blocks of {BLOCK_SIZE} do not divide"
        return None

    def round(self, weight: Float32, covariance: Float32 | None) -> tuple[dict[str, Array], Float32]:
        """Round (inputs, outputs) to the nearest, or with a covariance of its inputs by GPTQ.

        Returns:
            The constants that the form stores, and the weight that they stand for.
        """
        if self.by_column:
            numbers, scales = quantize_columns(weight) if covariance is None else round_compensated(weight, covariance, 0.0)
            return {"numbers": numbers, "scales": scales}, numbers * scales
        blocks = quantize_blocks(weight)
        blocks = blocks._replace(scales=_as_stored(blocks.scales))
        if covariance is not None:
            blocks = compensate_blocks(blocks, weight, covariance)
        signed = (blocks.numbers.astype(np.int8) - 8).reshape(weight.shape)  # -8 to 7
        return {"numbers": signed, "scales": blocks.scales}, dequantize_blocks(blocks, len(weight))


def _as_stored(scales: Float32) -> Float32:
    """Return scales rounded to fp16, in which they are stored; those beyond its normal numbers stay as they are."""
    magnitudes = np.abs(scales)
    is_normal = (magnitudes >= _HALF.tiny) & (magnitudes <= _HALF.max)
    return np.where(is_normal, np.where(is_normal, scales, 0).astype(np.float16).astype(np.float32), scales)
