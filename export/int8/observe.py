"""Run the fp32 graph over calibration frames and keep, of each MatMul's input, a few numbers per channel.

The first pass keeps the smallest, largest and mean value of every channel. Ranges and covariances belong to the input as
it will be rounded, so they come from later passes, in groups whose covariances (K x K numbers for K channels) fit into
`COVARIANCE_BYTES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime

from rfedge.arrays import Float32, Float64
from rfedge.export.int8.ranges import MagnitudeHistogram
from rfedge.recurrence import Arrays

COVARIANCE_BYTES: Final = 1 << 30


class ChannelStatistics:
    """Smallest, largest and mean value of each of `num_channels` channels, and how much it varies."""

    def __init__(self, num_channels: int) -> None:
        self.low = np.full(num_channels, np.inf, np.float32)
        self.high = np.full(num_channels, -np.inf, np.float32)
        self.total, self.squares = np.zeros(num_channels), np.zeros(num_channels)
        self.count = 0

    def add(self, rows: Float32) -> None:
        self.low = np.minimum(self.low, rows.min(axis=0))
        self.high = np.maximum(self.high, rows.max(axis=0))
        self.total += rows.sum(axis=0, dtype=np.float64)
        self.squares += np.square(rows).sum(axis=0, dtype=np.float64)
        self.count += len(rows)

    @property
    def mean(self) -> Float32:
        mean: Float32 = (self.total / self.count).astype(np.float32)
        return mean

    @property
    def variance(self) -> Float64:
        variance: Float64 = np.maximum(self.squares / self.count - (self.total / self.count) ** 2, 0.0)
        return variance


@dataclass(eq=False)
class RoundedInput:
    """A MatMul's input as it will be rounded, (x - centre) / scale: its magnitudes and, if wanted, its covariance."""

    centre: Float32  # (channels,)
    scale: Float32  # (channels,)
    mean: Float32  # (channels,) before centring; what varies is measured from here
    with_histogram: bool
    with_covariance: bool
    histogram: MagnitudeHistogram = field(default_factory=MagnitudeHistogram)
    gram: Float32 | None = None  # (channels, channels), sum over rows of outer(x, x) of the varying part
    count: int = 0

    def __post_init__(self) -> None:
        if self.with_covariance:
            self.gram = np.zeros((len(self.mean), len(self.mean)), np.float32)

    def add(self, rows: Float32) -> None:
        if self.with_histogram:
            self.histogram.add((rows - self.centre) / self.scale)
        self.count += len(rows)
        if self.gram is not None:
            varying = (rows - self.mean) / self.scale
            self.gram += varying.T @ varying

    @property
    def covariance(self) -> Float32:
        assert self.gram is not None, "only with_covariance"
        return self.gram / np.float32(self.count)


def group_by_memory(channels: Mapping[str, int], *, limit_bytes: int = COVARIANCE_BYTES) -> list[list[str]]:
    """Split tensors by number of channels into groups of one or of covariances that take at most `limit_bytes`."""
    groups: list[list[str]] = []
    left = 0
    for name, count in channels.items():
        size = 4 * count * count
        if not groups or size > left:
            groups.append([])
            left = limit_bytes
        groups[-1].append(name)
        left -= size
    return groups


def observe(
    graph: Path,
    observers: Mapping[str, ChannelStatistics | RoundedInput],
    frames: Sequence[Arrays],
    *,
    on_frame: Callable[[], None] = lambda: None,
) -> None:
    """Run the fp32 graph over `frames`, its weights mapped, and give each observer its tensor (..., channels) as rows."""
    names = list(observers)
    session = _session(graph, names)
    for frame in frames:
        inputs = {name: np.ascontiguousarray(array) for name, array in frame.items()}
        for name, array in zip(names, session.run(names, inputs), strict=True):
            observers[name].add(array.reshape(-1, array.shape[-1]))
        on_frame()


def _session(graph: Path, names: Sequence[str]) -> Any:
    model = onnx.load(graph, load_external_data=False)
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in present
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # The tensors looked at must be there under their names.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        options.add_session_config_entry("session.disable_prepacking", "1")  # it copies what is mapped
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
