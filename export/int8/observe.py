"""Run the fp32 graph over calibration frames and keep, of each MatMul's input, a few numbers per channel.

The first pass keeps the smallest, largest and mean value of every channel. Ranges and covariances belong to the input as
it will be rounded, after its channels were centred and scaled, so they come from later passes, in groups: the covariance
of a MatMul of K channels is K x K numbers. Memory is that of one frame's inputs to the MatMuls of one group plus
`COVARIANCE_BYTES`, however many MatMuls and frames there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from rfedge.export.int8.histogram import MagnitudeHistogram

Inputs = Mapping[str, npt.NDArray[Any]]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

COVARIANCE_BYTES: Final = 1 << 30


class Observer(Protocol):
    def add(self, rows: Float32) -> None:
        """Take note of (rows, channels)."""


@dataclass(eq=False)
class ChannelStatistics:
    """Smallest, largest and mean value of each of `num_channels` channels, and how much it varies."""

    num_channels: int
    low: Float32 = field(init=False)
    high: Float32 = field(init=False)
    total: Float64 = field(init=False)
    squares: Float64 = field(init=False)
    count: int = 0

    def __post_init__(self) -> None:
        self.low = np.full(self.num_channels, np.inf, np.float32)
        self.high = np.full(self.num_channels, -np.inf, np.float32)
        self.total = np.zeros(self.num_channels)
        self.squares = np.zeros(self.num_channels)

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

    @property
    def peak(self) -> np.float32:
        """Largest magnitude of all."""
        return np.float32(max(-self.low.min(), self.high.max(), 0.0))


@dataclass(eq=False)
class RoundedInput:
    """A MatMul's input as it will be rounded, (x - centre) / scale: its magnitudes and, if wanted, its covariance.

    Attributes:
        centre, scale: float32 (channels,).
        mean: of the input before, float32 (channels,); what varies is measured from here.
        gram: sum over rows of outer(x, x) of the varying part, float32 (channels, channels); None when not wanted.
    """

    centre: Float32
    scale: Float32
    mean: Float32
    with_histogram: bool
    with_covariance: bool
    histogram: MagnitudeHistogram = field(default_factory=MagnitudeHistogram)
    gram: Float32 | None = None
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
    """Split tensors, by their number of channels, into groups whose covariances together take at most `limit_bytes`.

    A tensor whose covariance alone is larger has a group of its own.
    """
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
    observers: Mapping[str, Observer],
    frames: Sequence[Inputs],
    *,
    on_frame: Callable[[], None] = lambda: None,
) -> None:
    """Run the graph at `graph` over `frames` and show each observer the tensor it is registered for, as rows.

    Args:
        graph: fp32; weights in a file beside it are mapped by the runtime, not read.
        observers: by the name of a tensor (..., channels).
    """
    names = list(observers)
    session = _session(graph, names)
    for frame in frames:
        inputs = {name: np.ascontiguousarray(array) for name, array in frame.items()}
        for name, array in _outputs(session, names, inputs):
            observers[name].add(array.reshape(-1, array.shape[-1]))
        on_frame()


def _outputs(session: Any, names: Sequence[str], inputs: Inputs) -> Iterator[tuple[str, Float32]]:
    arrays = session.run(list(names), dict(inputs))
    yield from zip(names, arrays, strict=True)


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
