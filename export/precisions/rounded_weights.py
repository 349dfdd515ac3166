"""Weights of MatMuls as small integers, to the nearest or by GPTQ, in a graph: as standard ONNX, DequantizeLinear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from rfedge.arrays import Array, Float32
from rfedge.errors import ExportError
from rfedge.export.int8.insert import insert_bias
from rfedge.export.int8.matmuls import MatMul
from rfedge.export.int8.rounding import round_compensated
from rfedge.export.passes.graph_queries import (
    add_computed,
    drop_unread,
    input_of,
    insert_dequantize,
    tensor_of,
    tensor_shape,
)
from rfedge.export.precisions.block_quantization import (
    BLOCK_SIZE,
    compensate_blocks,
    dequantize_blocks,
    quantize_blocks,
    quantize_columns,
)
from rfedge.export.precisions.form_matmuls import REPAIR
from rfedge.export.precisions.weight_calibration import observe_weights
from rfedge.jobs.progress import Count
from rfedge.recurrence import Arrays

_HALF: Final = np.finfo(np.float16)


class RoundedWeights:
    """The rounded weights of one graph; each is there once, however many MatMuls read it."""

    def __init__(self, graph: ir.Graph, rounding_of: Callable[[MatMul], WeightRounding]) -> None:
        self._graph, self._rounding_of = graph, rounding_of
        self._stored: dict[ir.Value, Path] = {}
        self._unpacked: dict[ir.Value, ir.Value] = {}

    def round_by_frames(
        self, source: Path, matmuls: Sequence[MatMul], frames: Sequence[Arrays], folder: Path, on_frame: Count
    ) -> None:
        """Round what the MatMuls multiply by how their inputs vary; the numbers wait in `folder` until they are written.

        What the rounded weights get wrong for the mean input goes into the bias after each MatMul.
        """
        readers: dict[ir.Value, list[MatMul]] = {}
        for matmul in matmuls:
            readers.setdefault(matmul.weight, []).append(matmul)
        names = {matmul.name: str(matmul.source.name) for matmul in matmuls}  # in `source`; a bias renames tensors
        for weight, inputs in observe_weights(source, matmuls, frames, on_frame=on_frame):
            first = readers[weight][0]
            read = _read(first)()
            parts, rounded = self._rounding_of(first).round(read, inputs.covariance)
            self._stored[weight] = folder / f"{len(self._stored)}.npz"
            np.savez(self._stored[weight], **parts)  # type: ignore[arg-type]
            lost = read.astype(np.float64) - rounded
            for matmul in readers[weight]:
                insert_bias(self._graph, matmul.node, (inputs.means[names[matmul.name]] @ lost).astype(np.float32))

    def insert(self, matmul: MatMul) -> None:
        """Let the MatMul read its rounded weight."""
        weight = matmul.weight
        if weight not in self._unpacked:
            self._unpacked[weight] = self._dequantize(matmul)
        matmul.node.replace_input_with(1, self._unpacked[weight])
        drop_unread(self._graph, weight)

    def _dequantize(self, matmul: MatMul) -> ir.Value:
        rounding, weight, name = self._rounding_of(matmul), matmul.weight, str(matmul.weight.name)
        read, stored = _read(matmul), self._stored.get(weight)
        parts = WeightParts(lambda: rounding.round(read(), None)[0] if stored is None else _load(stored))
        rows, columns = tensor_shape(tensor_of(weight))
        # A Gemm may hold its weight transposed, one row per output.
        transposed = matmul.is_transposed
        take = parts.part("numbers")
        if rounding.by_column:
            dtype, attributes = ir.DataType.INT8, {"axis": 0 if transposed else 1}
            shape: tuple[int, ...] = (rows if transposed else columns,)
        else:
            dtype, attributes = ir.DataType.INT4, {"axis": 0, "block_size": BLOCK_SIZE}
            shape = (rows // BLOCK_SIZE, columns)
        taken = (lambda: take().T) if transposed else take
        numbers = add_computed(self._graph, f"{name}/int{rounding.bits}", taken, dtype, (rows, columns))
        scales = add_computed(self._graph, f"{name}/scale", parts.part("scales"), ir.DataType.FLOAT, shape)
        label = f"{matmul.name}/dequantize"
        return insert_dequantize(self._graph, matmul.node, weight, [numbers, scales], name=label, **attributes)


def dequantize_kernel(graph: ir.Graph, node: ir.Node) -> None:
    """Let a convolution read its kernel (outputs, channels, rows, columns) from int8."""
    weight = input_of(node, 1)
    shape, read = tensor_shape(tensor_of(weight)), finite_weight(weight)

    def rounded() -> dict[str, Array]:
        numbers, scales = quantize_columns(read().reshape(shape[0], -1).T)
        return {"numbers": numbers.T.reshape(shape), "scales": scales}

    parts = WeightParts(rounded)
    numbers = add_computed(graph, f"{weight.name}/int8", parts.part("numbers"), ir.DataType.INT8, shape)
    scales = add_computed(graph, f"{weight.name}/scale", parts.part("scales"), ir.DataType.FLOAT, shape[:1])
    read_int8 = insert_dequantize(graph, node, weight, [numbers, scales], name=f"{node.name}/dequantize", axis=0)
    node.replace_input_with(1, read_int8)
    drop_unread(graph, weight)


def _read(matmul: MatMul) -> Callable[[], Float32]:
    read, transposed = finite_weight(matmul.weight), matmul.is_transposed
    return lambda: read().T if transposed else read()


def _load(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


class WeightParts:
    """The parts of one quantized weight: it is rounded once, and each part is let go when it has been written."""

    def __init__(self, compute: Callable[[], Mapping[str, Array]]) -> None:
        self._compute = compute
        self._waiting: dict[str, Array] = {}

    def part(self, name: str) -> Callable[[], Array]:
        """Return a function that hands out the part, once."""

        def take() -> Array:
            if name not in self._waiting:
                self._waiting = dict(self._compute())
            return self._waiting.pop(name)

        return take


def finite_weight(value: ir.Value) -> Callable[[], Float32]:
    """Return a function that reads the weight, and raises ExportError where it holds NaN or Inf."""
    tensor, name = tensor_of(value), value.name

    def read() -> Float32:
        array: Float32 = tensor.numpy().astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise ExportError(f"weight {name!r}", got="NaN or Inf", expected="finite numbers", remedy=REPAIR)
        return array

    return read


class WeightRounding(NamedTuple):
    """How one weight is rounded: to 8 bits on one scale per column, or to 4 bits in blocks."""

    bits: int

    @property
    def by_column(self) -> bool:
        return self.bits == 8

    def fits(self, matmul: MatMul) -> bool:
        """Whether a kernel takes the weight: none with packed weights is a Gemm."""
        return self.by_column or (matmul.node.op_type == "MatMul" and matmul.num_channels % BLOCK_SIZE == 0)

    def round(self, weight: Float32, covariance: Float32 | None) -> tuple[dict[str, Array], Float32]:
        """Round (inputs, outputs) to the nearest, or with a covariance by GPTQ; return what is stored, and as float32."""
        if self.by_column:
            numbers, scales = quantize_columns(weight) if covariance is None else round_compensated(weight, covariance, 0.0)
            return {"numbers": numbers, "scales": scales}, numbers * scales
        blocks = quantize_blocks(weight)
        blocks = blocks._replace(scales=_as_stored(blocks.scales))
        if covariance is not None:
            blocks = compensate_blocks(blocks, weight, covariance)
        signed = (blocks.numbers.astype(np.int8) - 8).reshape(weight.shape)  # -8 to 7
        return {"numbers": signed, "scales": blocks.scales}, dequantize_blocks(blocks)


def _as_stored(scales: Float32) -> Float32:
    """Return scales rounded to fp16, in which they are stored; those beyond its normal numbers stay as they are."""
    magnitudes = np.abs(scales)
    is_normal = (magnitudes >= _HALF.tiny) & (magnitudes <= _HALF.max)
    return np.where(is_normal, np.where(is_normal, scales, 0).astype(np.float16).astype(np.float32), scales)
