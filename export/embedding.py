"""The token table as a bundle stores it: what an instruction's words become, looked up once per instruction.

fp32 keeps it whole; other precisions store fp16. int8 with one scale per row, which rounds less than the first MatMul does,
is for int4-weight and, in the 8-bit precisions, for the table of a full-size language model, 206 MB in fp16.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from rfedge.bundle.artifact import EMBEDDING_SCALE, EMBEDDING_TENSOR
from rfedge.config import DecoderConfig, Precision

Float32 = npt.NDArray[np.float32]

_LARGE_BYTES: Final = 100_000_000  # in fp16
_EIGHT_BITS: Final = ("int8", "mixed", "int8-weight")


@dataclass(frozen=True, slots=True)
class StoredTable:
    """How a table is stored: "float32", "float16", or "int8" with one scale a row."""

    dtype: Literal["float32", "float16", "int8"]

    def save(self, table: Float32, path: Path) -> None:
        """Write the table (vocabulary, width)."""
        save_file(self.tensors(table), path)

    def tensors(self, rows: Float32) -> dict[str, npt.NDArray[Any]]:
        """Return the tensors that store rows (row, width); a row is stored alike whatever stands beside it."""
        if self.dtype == "int8":
            scale, rounded = _rounded(rows)
            return {EMBEDDING_TENSOR: rounded, EMBEDDING_SCALE: scale}
        return {EMBEDDING_TENSOR: rows.astype(self.dtype)}

    def as_stored(self, rows: npt.NDArray[Any]) -> Float32:
        """Return embedded tokens (..., width) as they come back from the stored table."""
        if self.dtype == "int8":
            scale, rounded = _rounded(rows)
            return rounded.astype(np.float32) * scale[..., None]
        return rows.astype(self.dtype).astype(np.float32)


def stored_words(decoder: DecoderConfig, precision: Precision, *, are_states: bool) -> StoredTable:
    """Return how what a decoder reads is stored; hidden states, which int8 would round more, in 16 bits."""
    stored = stored_table(decoder, precision)
    return StoredTable("float16") if are_states and stored.dtype == "int8" else stored


def stored_table(decoder: DecoderConfig, precision: Precision) -> StoredTable:
    """Return how the table of `decoder` is stored in a bundle of this precision."""
    if precision == "fp32":
        return StoredTable("float32")
    if precision == "int4-weight":
        return StoredTable("int8")
    is_large = 2 * decoder.vocab_size * decoder.width > _LARGE_BYTES
    return StoredTable("int8" if is_large and precision in _EIGHT_BITS else "float16")


def _rounded(rows: npt.NDArray[Any]) -> tuple[Float32, npt.NDArray[np.int8]]:
    scale = np.maximum(np.abs(rows).max(axis=-1) / 127.0, np.finfo(np.float32).tiny).astype(np.float32)
    return scale, np.clip(np.rint(rows / scale[..., None]), -127, 127).astype(np.int8)
