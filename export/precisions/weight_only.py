"""int8-weight and int4-weight: the weights of MatMuls as small integers, the arithmetic in floats as before.

With calibration frames weights are rounded by GPTQ, and the error at the mean input goes into a bias; without frames they
are rounded to the nearest.

A weight is DequantizeLinear(weight, scale) -> MatMul, standard ONNX that TensorRT reads: int8 with one scale per output
column, int4 with one per block of 32 inputs of a column (opset 21). ONNX Runtime 1.31 makes MatMulNBits of the pair when
it loads the graph, at accuracy level 4; without that fusion it would unpack the weight to fp32.

Scales of blocks, and the matrices and kernels that stay in float, are stored in fp16 (`half_storage`); beside 4 bits the
kernels of convolutions over features are in int8, one scale per output.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
import onnx_ir as ir

from rfedge.arrays import Array, Float32
from rfedge.errors import ExportError
from rfedge.export.int8.insert import insert_bias
from rfedge.export.int8.matmuls import QUERY_ATTENTION, MatMul, as_matmul
from rfedge.export.int8.observe import ChannelStatistics, RoundedInput, group_by_memory, observe
from rfedge.export.int8.rounding import round_compensated
from rfedge.export.passes.graph_files import read_graph, write_graph
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
from rfedge.export.precisions.form_matmuls import REPAIR, choose_matmuls
from rfedge.export.precisions.half_storage import store_weights_half
from rfedge.jobs.progress import Count
from rfedge.recurrence import Arrays


class WeightInputs(NamedTuple):
    """The inputs of one weight over the calibration frames."""

    covariance: Float32  # (inputs, inputs), each tensor about its own mean
    means: dict[str, Float32]  # by tensor, (inputs,)


def observe_weights(
    source: Path, matmuls: Sequence[MatMul], frames: Sequence[Arrays], *, on_frame: Count = lambda *_: None
) -> Iterator[tuple[ir.Value, WeightInputs]]:
    """Yield every weight with its inputs, in passes over the frames that hold at most 1 GiB of covariances each."""
    channels = {str(matmul.source.name): matmul.num_channels for matmul in matmuls}
    waiting: dict[ir.Value, list[str]] = {}
    for matmul in matmuls:
        waiting.setdefault(matmul.weight, []).append(str(matmul.source.name))
    groups = group_by_memory(channels)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        on_frame(done, (1 + len(groups)) * len(frames))

    statistics = {tensor: ChannelStatistics(num_channels) for tensor, num_channels in channels.items()}
    observe(source, statistics, frames, on_frame=count)
    held: dict[str, RoundedInput] = {}
    for group in groups:
        seen = {}
        for tensor in group:
            mean = statistics[tensor].mean
            zero, one = np.zeros_like(mean), np.ones_like(mean)
            seen[tensor] = RoundedInput(zero, one, mean, with_histogram=False, with_covariance=True)
        observe(source, seen, frames, on_frame=count)
        held |= seen
        for weight in [weight for weight, tensors in waiting.items() if held.keys() >= set(tensors)]:
            inputs = {tensor: held[tensor] for tensor in waiting.pop(weight)}
            yield (
                weight,
                WeightInputs(_covariance(list(inputs.values())), {name: item.mean for name, item in inputs.items()}),
            )
        needed = {tensor for tensors in waiting.values() for tensor in tensors}
        held = {tensor: item for tensor, item in held.items() if tensor in needed}


def _covariance(inputs: Sequence[RoundedInput]) -> Float32:
    if len(inputs) == 1:
        return inputs[0].covariance
    covariance: Float32 = np.average([item.covariance for item in inputs], axis=0, weights=[item.count for item in inputs])
    return covariance.astype(np.float32)


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


# int4 tensors and blocks of a DequantizeLinear came with this version; of the operators in our graphs it only widened types.
_INT4_OPSET: Final = 21


def make_weight_only(
    bits: Literal[4, 8],
    source: Path,
    target: Path,
    *,
    keep_float: Sequence[str] | None = None,
    frames: Sequence[Arrays] = (),
    on_weight: Count = lambda *_: None,
    on_frame: Count = lambda *_: None,
) -> list[Path]:
    """Write the graph at `source` to `target`, which may be `source`, with int8 or int4 weights; return the files written.

    `keep_float` None keeps none, and with 4 bits rounds what is most sensitive, `QUERY_ATTENTION`, to 8. Without `frames`
    weights are rounded to the nearest.
    """
    eight_bits = QUERY_ATTENTION if keep_float is None else ()

    def rounding_of(matmul: MatMul) -> WeightRounding:
        return WeightRounding(8 if matmul.begins_with_any(eight_bits) else bits)

    model = read_graph(source)
    graph = model.graph
    chosen = choose_matmuls(graph, keep_float or ())
    matmuls = [matmul for matmul in map(as_matmul, chosen.converted) if rounding_of(matmul).fits(matmul)]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        weights = RoundedWeights(graph, rounding_of)
        if frames:
            weights.round_by_frames(source, matmuls, frames, Path(folder), on_frame)
        for matmul in matmuls:
            weights.insert(matmul)
        if bits == 4:
            for node in chosen.kernels:
                dequantize_kernel(graph, node)
            graph.opset_imports[""] = max(graph.opset_imports[""], _INT4_OPSET)
            model.ir_version = max(model.ir_version, 10)
        store_weights_half(graph)
        return write_graph(model, target, on_weight=on_weight)
