"""Where the tensors of an engine lie in one block of pinned memory, and at the same places in one block on the device.

Inputs come first and outputs after them, so that a step is one copy up and one copy down, however many tensors there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rfedge.arrays import Array, UInt8
from rfedge.contract import GraphContract, TensorSpec

_ALIGNMENT: Final = 256  # TensorRT asks this of every address
_TOKEN_AXIS: Final = "token"


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one tensor, `offset` bytes from the start of the block."""

    name: str
    dtype: np.dtype[Any]
    offset: int
    size_bytes: int

    def view(self, block: UInt8, shape: Sequence[int]) -> Array:
        """Return the tensor of this shape inside `block`; nothing is copied."""
        size_bytes = int(np.prod(shape)) * self.dtype.itemsize
        assert size_bytes <= self.size_bytes, self.name
        return block[self.offset : self.offset + size_bytes].view(self.dtype).reshape(shape)

    def write(self, block: UInt8, array: Array, shape: Sequence[int]) -> None:
        """Put `array` into `block` as a tensor of `shape`; what a longer axis 1 leaves over becomes 0.

        A token that was added this way has a false mask, so it changes no feature.
        """
        place = self.view(block, shape)
        if array.shape == tuple(shape):
            place[...] = array
        else:
            place[:, : array.shape[1]] = array
            place[:, array.shape[1] :] = 0


@dataclass(frozen=True, slots=True)
class BufferPlan:
    """All slots of one engine; the first `input_bytes` are copied up, the outputs begin there."""

    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    input_bytes: int
    total_bytes: int


def plan_buffers(contract: GraphContract, largest: Mapping[str, Sequence[int]]) -> BufferPlan:
    inputs, input_bytes = _place(contract.inputs, largest, 0)
    outputs, total_bytes = _place(contract.outputs, largest, input_bytes)
    return BufferPlan(inputs, outputs, input_bytes, total_bytes)


def _place(specs: Sequence[TensorSpec], largest: Mapping[str, Sequence[int]], offset: int) -> tuple[tuple[Slot, ...], int]:
    slots = []
    for spec in specs:
        dtype = np.dtype(spec.dtype)
        size_bytes = int(np.prod(largest[spec.name])) * dtype.itemsize
        slots.append(Slot(spec.name, dtype, offset, size_bytes))
        offset += -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
    return tuple(slots), offset


def text_inputs(contract: GraphContract) -> frozenset[str]:
    """Return the inputs whose number of tokens is open: those that are padded to a profile's length."""
    return frozenset(spec.name for spec in contract.inputs if -1 in spec.shape and _TOKEN_AXIS in spec.axes)
