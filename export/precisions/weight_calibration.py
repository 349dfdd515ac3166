"""Statistics of calibration frames for weights: how the inputs that each of them multiplies vary together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from rfedge.arrays import Float32
from rfedge.export.int8.matmuls import MatMul
from rfedge.export.int8.observe import ChannelStatistics, RoundedInput, group_by_memory, observe
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
        seen = {tensor: _observer(statistics[tensor].mean) for tensor in group}
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


def _observer(mean: Float32) -> RoundedInput:
    return RoundedInput(np.zeros_like(mean), np.ones_like(mean), mean, with_histogram=False, with_covariance=True)


def _covariance(inputs: Sequence[RoundedInput]) -> Float32:
    if len(inputs) == 1:
        return inputs[0].covariance
    covariance: Float32 = np.average([item.covariance for item in inputs], axis=0, weights=[item.count for item in inputs])
    return covariance.astype(np.float32)
