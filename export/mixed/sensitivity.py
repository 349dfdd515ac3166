"""What int8 in some blocks does to the action: the graph with just these blocks in int8 against the fp32 graph, over
episodes in which each side carries its own state.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from rfedge.bundle.traces import Episodes, RolloutTrace, compare_traces
from rfedge.config import PolicyConfig
from rfedge.export.int8.options import Int8Options
from rfedge.export.int8.rounded_store import RoundedStore
from rfedge.export.mixed.blocks import kept_float
from rfedge.export.mixed.cache import MeasurementCache
from rfedge.export.parity import onnx_rollout
from rfedge.export.precisions.cpu_int8 import lower_int8
from rfedge.export.quantize import quantize_int8
from rfedge.jobs.progress import StageProgress

Inputs = Mapping[str, npt.NDArray[Any]]
Metrics = dict[str, float]


@dataclass(eq=False)
class ErrorMeter:
    """Measures sets of int8 blocks, each set once.

    Attributes:
        graph: backbone in fp32.
        head: the policy's head, the same on both sides.
        blocks: all that may be int8.
        episodes: graph inputs step by step; the state is reset between episodes.
        options: how int8 is made.
        cache: what was measured before.
        store: rounded MatMuls, shared by all graphs of the search.
        folder: for graphs that live as long as one measurement.
    """

    config: PolicyConfig
    graph: Path
    head: Path
    blocks: Sequence[str]
    frames: Sequence[Inputs]
    episodes: Episodes
    options: Int8Options
    cache: MeasurementCache
    store: RoundedStore
    folder: Path
    num_measured: int = 0
    _reference: RolloutTrace | None = field(default=None, init=False)

    def measure(self, int8: Iterable[str]) -> Metrics:
        """Return the metrics of `compare_traces` with the blocks `int8` in int8 and all others in float."""
        chosen = [block for block in self.blocks if block in set(int8)]
        found: Metrics | None = self.cache.get(measure="error", int8=chosen)
        if found is None:
            found = self._roll(chosen)
            self.cache.put(found, measure="error", int8=chosen)
            self.num_measured += 1
        return found

    def _roll(self, int8: Sequence[str]) -> Metrics:
        if self._reference is None:
            self._reference = onnx_rollout(self.config, self.graph, self.head, self.episodes)
        if not int8:
            return compare_traces(self._reference, self._reference)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="variant-") as folder:
            variant = self.write(int8, Path(folder))
            return compare_traces(self._reference, onnx_rollout(self.config, variant, self.head, self.episodes))

    def write(self, int8: Iterable[str], folder: Path, *, progress: StageProgress = lambda *_: None) -> Path:
        """Write the form for CPUs with these blocks in int8 to `folder` and return it."""
        return write_cpu_form(
            self.graph, folder, self.frames, kept_float(self.blocks, int8), self.options, self.store, progress=progress
        )


def write_cpu_form(
    graph: Path,
    folder: Path,
    frames: Sequence[Inputs],
    keep_float: Sequence[str] | None,
    options: Int8Options,
    store: RoundedStore,
    *,
    progress: StageProgress = lambda *_: None,
) -> Path:
    """Quantize `graph`, write its form with integer kernels to `folder` and return that file."""
    quantized, lowered = folder / "quantized.onnx", folder / "quantized-cpu.onnx"
    quantize_int8(graph, quantized, frames, keep_float=keep_float, options=options, store=store, progress=progress)
    lower_int8(quantized, lowered)
    return lowered
