"""int8 (W8A8) as explicit Q/DQ: symmetric, zero-point 0, per-channel weights, per-tensor activations.

Only the inputs of a MatMul are quantized, never its output: the integer kernel then returns floats, one rounding less
per MatMul, and it is the form that both ONNX Runtime (MatMulIntegerToFloat) and TensorRT fuse. Attention MatMuls
(q·k, p·v), LayerNorm, softmax, the patch convolution and the camera resize stay in float.

In order: observe the channels of every MatMul's input, choose what to centre and scale, observe the result for ranges
and covariances, round the weights, insert.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from rfedge.arrays import Float32
from rfedge.errors import DatasetError
from rfedge.export.int8.balance import Balance, balance_input, find_gain
from rfedge.export.int8.insert import apply_balance, insert_bias, insert_rounded, read_weight, rewrite_float_reader
from rfedge.export.int8.matmuls import QUERY_ATTENTION, MatMul, quantizable_matmuls
from rfedge.export.int8.observe import ChannelStatistics, RoundedInput, group_by_memory, observe
from rfedge.export.int8.options import Int8Options
from rfedge.export.int8.ranges import choose_magnitude, scale_from_amax
from rfedge.export.int8.rounded_store import RoundedGroup, RoundedMatMul, RoundedStore
from rfedge.export.int8.rounding import Rounded, round_compensated, round_nearest
from rfedge.export.passes.graph_files import INLINE_LIMIT_BYTES, read_graph, weight_file, write_graph
from rfedge.export.passes.split_weights import SplitWeights
from rfedge.export.precisions.row_int8 import RowMatMul
from rfedge.jobs.progress import StageProgress
from rfedge.recurrence import Arrays


def quantize_int8(
    source: Path,
    target: Path,
    inputs: Iterable[Arrays],
    *,
    keep_float: Sequence[str] | None = (),
    options: Int8Options | None = None,
    store: RoundedStore | None = None,
    rows: dict[str, RowMatMul] | None = None,
    progress: StageProgress = lambda *_: None,
) -> int:
    """Write the Q/DQ form of the fp32 graph at `source` to `target`, which may be `source`; return how many MatMuls it has.

    What `store` holds (of this graph, these frames and these options) is not computed again. `rows` is filled with the
    MatMuls of `QUERY_ATTENTION` that stay in float, rounded for `lower_int8`.
    """
    options = options or Int8Options()
    frames = list(inputs)
    if not frames:
        raise DatasetError("calibration", got="no frame", expected="at least one", remedy="Give more episodes.")
    model = read_graph(source)
    if options.split_packed:
        SplitWeights()(model)
    matmuls = quantizable_matmuls(model.graph, keep_float)
    work = _Work(source, model.graph, matmuls, frames, options, progress, store)
    if rows is not None:
        work.rows, work.row_matmuls = rows, _row_matmuls(model.graph, matmuls)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        is_external = weight_file(source).exists()
        if is_external:
            work.spill = Path(folder)
        work.run()
        # What has its weights beside it keeps them there, so that a bundle lists the same files.
        write_graph(model, target, inline_limit_bytes=0 if is_external else INLINE_LIMIT_BYTES)
    return len(matmuls)


def _row_matmuls(graph: ir.Graph, quantized: Sequence[MatMul]) -> list[MatMul]:
    """Return the MatMuls of query attention that are not quantized with the rest, nor read a tensor that is."""
    read = {matmul.source for matmul in quantized}
    return [
        matmul
        for matmul in quantizable_matmuls(graph, ())
        if matmul.begins_with_any(QUERY_ATTENTION) and matmul.source not in read and not matmul.is_transposed
    ]


@dataclass
class _Work:
    source: Path
    graph: ir.Graph
    matmuls: list[MatMul]
    frames: list[Arrays]
    options: Int8Options
    progress: StageProgress
    store: RoundedStore | None = None
    rows: dict[str, RowMatMul] = field(default_factory=dict)
    row_matmuls: list[MatMul] = field(default_factory=list)
    spill: Path | None = None  # where finished weights wait until the graph is written; None keeps them in memory
    statistics: dict[str, ChannelStatistics] = field(default_factory=dict)
    frames_done: int = 0
    matmuls_done: int = 0

    def run(self) -> None:
        readers: dict[str, list[MatMul]] = {}
        for matmul in (*self.matmuls, *self.row_matmuls):
            readers.setdefault(str(matmul.source.name), []).append(matmul)
        if (store := self.store) is not None:
            for name in [name for name in readers if store.has(name, [matmul.name for matmul in readers[name]])]:
                self._insert_stored(name, readers.pop(name))
        if not readers:
            return
        channels = {name: group[0].num_channels for name, group in readers.items()}
        compensated = self.options.rounding == "compensated"
        groups = group_by_memory(channels) if compensated else [list(channels)]
        looks_again = compensated or self.options.ranges != "min-max"
        num_passes = 1 + (len(groups) if looks_again else 0)
        self.statistics = {name: ChannelStatistics(count) for name, count in channels.items()}
        self._observe(self.statistics, num_passes)
        for group in groups:
            balances = {name: self._balance(name, readers[name]) for name in group}
            inputs = {
                name: RoundedInput(
                    balance.centre,
                    balance.scale,
                    self.statistics[name].mean,
                    with_histogram=self.options.ranges != "min-max",
                    with_covariance=compensated,
                )
                for name, balance in balances.items()
            }
            if looks_again:
                self._observe(inputs, num_passes)
            for name in group:
                rounds = self._round_rows if self._in_rows(readers[name]) else self._round
                rounds(name, readers[name], balances[name], inputs.pop(name))

    def _observe(self, observers: Mapping[str, ChannelStatistics | RoundedInput], num_passes: int) -> None:
        def count() -> None:
            self.frames_done += 1
            self.progress("calibrate", self.frames_done, num_passes * len(self.frames))

        observe(self.source, observers, self.frames, on_frame=count)

    # `name` is the tensor's in the float graph: a corrected bias of the MatMul before renames it in this one.
    def _balance(self, name: str, matmuls: list[MatMul]) -> Balance:
        value = matmuls[0].source
        if self._in_rows(matmuls):
            statistics = self.statistics[name]
            middle = (statistics.low + statistics.high) / 2
            centre = middle if self.options.centre else np.zeros_like(middle)
            return Balance(centre.astype(np.float32), np.ones_like(centre), None)
        weights: Sequence[Float32] = ()
        if self.options.smooth_quant is not None:
            weights = [read_weight(matmul.weight, is_transposed=matmul.is_transposed) for matmul in matmuls]
        return balance_input(value, self.statistics[name], weights, self.options)

    def _insert_stored(self, name: str, matmuls: list[MatMul]) -> None:
        assert self.store is not None, "the caller looked"
        group = self.store.load(name, [matmul.name for matmul in matmuls])
        is_balanced = self.options.centre or self.options.smooth_quant is not None
        gain = find_gain(matmuls[0].source) if is_balanced else None
        self._insert(matmuls, Balance(group.centre, group.scale, gain), group)

    def _round(self, name: str, matmuls: list[MatMul], balance: Balance, seen: RoundedInput) -> None:
        statistics = self.statistics[name]
        if self.options.ranges == "min-max":
            magnitude = balance.peak(statistics.low, statistics.high)
        else:
            magnitude = choose_magnitude(seen.histogram, self.options.ranges, percentile=self.options.percentile)
        step = scale_from_amax(magnitude)
        found = {}
        for matmul in matmuls:
            weight = read_weight(matmul.weight, is_transposed=matmul.is_transposed)
            scaled = weight * balance.scale[:, None]
            rounded = self._rounded(scaled, seen, step)
            found[matmul.name] = RoundedMatMul(rounded, self._bias(weight, balance, rounded, statistics.mean))
        group = RoundedGroup(balance.centre, balance.scale, step, found)
        if self.store is not None:
            self.store.save(name, group)
        self._insert(matmuls, balance, group)

    def _rounded(self, weight: Float32, seen: RoundedInput, step: np.float32) -> Rounded:
        if self.options.rounding == "nearest":
            return round_nearest(weight)
        return round_compensated(weight, seen.covariance, float(step))

    def _in_rows(self, matmuls: list[MatMul]) -> bool:
        return matmuls[0] in self.row_matmuls

    def _round_rows(self, name: str, matmuls: list[MatMul], balance: Balance, seen: RoundedInput) -> None:
        """Round the weights, taking the scale of all rows for that of a row, which no calibration knows."""
        statistics = self.statistics[name]
        step = scale_from_amax(balance.peak(statistics.low, statistics.high))
        for matmul in matmuls:
            weight = read_weight(matmul.weight, is_transposed=matmul.is_transposed)
            levels, steps = self._rounded(weight, seen, step)
            bias = None
            if self.options.correct_bias:
                mean = statistics.mean.astype(np.float64)
                bias = (mean @ weight - (mean @ levels) * steps).astype(np.float32)
            self.rows[matmul.name] = RowMatMul(levels, steps, balance.centre, bias)

    def _insert(self, matmuls: list[MatMul], balance: Balance, group: RoundedGroup) -> None:
        value = matmuls[0].source
        quantized = {matmul.node for matmul in matmuls}
        if balance.gain is not None:
            for node in [use.node for use in value.uses() if use.node not in quantized]:
                rewrite_float_reader(self.graph, node, balance)
        read = apply_balance(self.graph, value, balance)
        for matmul in matmuls:
            rounded, bias = group.matmuls[matmul.name]
            insert_rounded(
                self.graph, matmul, read, rounded, group.step, activation_type=self.options.activation_type, spill=self.spill
            )
            if bias is not None:
                insert_bias(self.graph, matmul.node, bias)
            self.matmuls_done += 1
            self.progress("round weights", self.matmuls_done, len(self.matmuls))

    def _bias(self, weight: Float32, balance: Balance, rounded: Rounded, mean: Float32) -> Float32 | None:
        """Return what float must add: the MatMul with the centre, and the mean error of the rounded weights."""
        if not self.options.correct_bias and not balance.centre.any():
            return None
        bias = balance.centre.astype(np.float64) @ weight
        if self.options.correct_bias:
            centred = (mean.astype(np.float64) - balance.centre) / balance.scale
            levels, steps = rounded
            bias += centred @ (weight * balance.scale[:, None]) - (centred @ levels) * steps
        return bias.astype(np.float32)
