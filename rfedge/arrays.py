"""Names for the types of NumPy arrays; their shapes stand where the arrays do."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Float32", "Float64", "Int8", "UInt8"]

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int8 = npt.NDArray[np.int8]
UInt8 = npt.NDArray[np.uint8]
