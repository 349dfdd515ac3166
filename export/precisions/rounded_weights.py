"""Put rounded weights into a graph: as standard ONNX, DequantizeLinear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rfedge.export.int8.insert import insert_bias
from rfedge.export.int8.matmuls import MatMul
from rfedge.export.passes.graph_files import WeightProgress
from rfedge.export.passes.graph_queries import add_computed, input_of, tensor_of, tensor_shape
from rfedge.export.precisions.block_quantization import BLOCK_SIZE, quantize_columns
from rfedge.export.precisions.weight_calibration import Frame, observe_weights
from rfedge.export.precisions.weight_parts import WeightParts, finite_weight
from rfedge.export.precisions.weight_rounding import WeightRounding

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


class RoundedWeights:
    """The rounded weights of one graph; each is there once, however many MatMuls read it."""

    def __init__(self, graph: ir.Graph, rounding_of: Callable[[MatMul], WeightRounding]) -> None:
        """Keep the graph, and how each weight is rounded."""
        self._graph, self._rounding_of = graph, rounding_of
        self._stored: dict[ir.Value, Path] = {}
        self._unpacked: dict[ir.Value, ir.Value] = {}

    def round_by_frames(
        self, source: Path, matmuls: Sequence[MatMul], frames: Sequence[Frame], folder: Path, on_frame: WeightProgress
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
        if not weight.uses() and not weight.is_graph_output():
            del self._graph.initializers[str(weight.name)]

    def _parts(self, matmul: MatMul) -> WeightParts:
        rounding = self._rounding_of(matmul)
        read, stored = _read(matmul), self._stored.get(matmul.weight)
        if stored is None:
            return WeightParts(lambda: rounding.round(read(), None)[0])
        return WeightParts(lambda: _load(stored))

    def _dequantize(self, matmul: MatMul) -> ir.Value:
        """Put DequantizeLinear before the MatMul; return its output."""
        rounding, node, weight = self._rounding_of(matmul), matmul.node, matmul.weight
        parts, name = self._parts(matmul), str(weight.name)
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
        numbers = add_computed(
            self._graph,
            f"{name}/int{rounding.bits}",
            (lambda: take().T) if transposed else take,
            dtype,
            (rows, columns),
        )
        scales = add_computed(self._graph, f"{name}/scale", parts.part("scales"), ir.DataType.FLOAT, shape)
        return _insert_dequantize(self._graph, node, weight, [numbers, scales], attributes)


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
    node.replace_input_with(1, _insert_dequantize(graph, node, weight, [numbers, scales], {"axis": 0}))
    if not weight.uses() and not weight.is_graph_output():
        del graph.initializers[str(weight.name)]


def _insert_dequantize(
    graph: ir.Graph, node: ir.Node, weight: ir.Value, constants: Sequence[ir.Value], attributes: Mapping[str, int]
) -> ir.Value:
    """Put DequantizeLinear before the node that reads `weight`; return its output."""
    new = ir.node("DequantizeLinear", constants, attributes=attributes, name=f"{node.name}/dequantize")
    new.metadata_props.update(node.metadata_props)
    output = new.outputs[0]
    output.name, output.type, output.shape = f"{weight.name}/dequantized", ir.TensorType(ir.DataType.FLOAT), weight.shape
    graph.insert_before(node, new)
    return output


def _read(matmul: MatMul) -> Callable[[], Float32]:
    read, transposed = finite_weight(matmul.weight), matmul.is_transposed
    return lambda: read().T if transposed else read()


def _load(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
