"""Measures which way of making an int8 graph keeps the actions: ranges, SmoothQuant, rounding, and what stays in float.

    python -m rfedge.benchmarks.studies.int8_ranges CHECKPOINT DEMONSTRATIONS --output RESULT.json

Every variant is calibrated on the same frames and stepped through the same held-out episodes with carried state, for
each seed; a seed draws both. The reference is PyTorch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from rfedge.benchmarks.studies.int8_ranges_report import Int8RangesReport, Int8Variant
from rfedge.contract import policy_contract
from rfedge.export.calibrate import FrameInputs, choose_calibration_frames, choose_proof_episodes
from rfedge.export.int8.matmuls import QUERY_ATTENTION, quantizable_matmuls
from rfedge.export.int8.options import PLAIN, Int8Options
from rfedge.export.parity import compare_traces, onnx_rollout, torch_rollout
from rfedge.export.passes.graph_files import read_graph
from rfedge.export.quantize import quantize_int8
from rfedge.export.trace import trace_backbone, trace_head
from rfedge.model import Checkpoint
from rfedge.records.machine import provenance

__all__ = ["VARIANTS", "measure_int8_ranges"]

_FULL: Final = Int8Options()
_RESAMPLER_ATTENTION: Final = QUERY_ATTENTION[:1]
_READING_ATTENTION: Final = (
    *_RESAMPLER_ATTENTION,
    "decoder.layers.*.cross_attention.attention.to_kv",
    "decoder.layers.*.cross_attention.attention.to_out",
)


class Case(NamedTuple):
    name: str
    options: Int8Options
    keep_float: tuple[str, ...]


VARIANTS: Final[tuple[Case, ...]] = (
    Case("min-max", PLAIN, ()),
    Case("percentile", replace(PLAIN, ranges="percentile"), ()),
    Case("mse", replace(PLAIN, ranges="mse"), ()),
    Case("min-max, SmoothQuant 0.5", replace(PLAIN, smooth_quant=0.5), ()),
    Case("centred, compensated", replace(_FULL, smooth_quant=None), ()),
    Case("min-max | resampler in float", PLAIN, ("resampler",)),
    Case("min-max | query attention in float", PLAIN, QUERY_ATTENTION),
    Case("compensated | query attention in float", replace(_FULL, smooth_quant=None, centre=False), QUERY_ATTENTION),
    Case("centred | query attention in float", replace(_FULL, smooth_quant=None, rounding="nearest"), QUERY_ATTENTION),
    Case("centred, compensated | query attention in float", replace(_FULL, smooth_quant=None), QUERY_ATTENTION),
    Case("the same, SmoothQuant 0.5 | query attention in float", replace(_FULL, smooth_quant=0.5), QUERY_ATTENTION),
    Case("the same, SmoothQuant search | query attention in float", replace(_FULL, smooth_quant="search"), QUERY_ATTENTION),
    Case(
        "the same, search, mse | query attention in float",
        replace(_FULL, smooth_quant="search", ranges="mse"),
        QUERY_ATTENTION,
    ),
    Case("the same, search | resampler attention in float", replace(_FULL, smooth_quant="search"), _RESAMPLER_ATTENTION),
    Case("the same, search | keys, values, outputs in float", replace(_FULL, smooth_quant="search"), _READING_ATTENTION),
)


def measure_int8_ranges(
    checkpoint: Checkpoint,
    frames: FrameInputs,
    *,
    cases: Sequence[Case] = VARIANTS,
    seeds: Sequence[int] = (0, 1, 2),
    num_calibration_frames: int = 128,
    num_steps: int = 256,
    on_variant: Callable[[Int8Variant], None] = lambda _: None,
) -> Int8RangesReport:
    """Quantize and prove every case for every seed, and call `on_variant` after each."""
    contract = policy_contract(checkpoint.config)
    measured: list[Int8Variant] = []
    with tempfile.TemporaryDirectory() as folder:
        backbone, head, quantized = (Path(folder) / f"{name}.onnx" for name in ("backbone", "head", "int8"))
        trace_backbone(checkpoint.policy, contract.backbone, backbone)
        trace_head(checkpoint.policy, contract.head, head)
        num_matmuls = len(quantizable_matmuls(read_graph(backbone).graph, ()))
        for seed in seeds:
            rng = np.random.default_rng(seed)
            chosen = choose_calibration_frames(frames.dataset, num_frames=num_calibration_frames, rng=rng)
            stride = checkpoint.config.frame_stride
            held_out = choose_proof_episodes(frames.dataset, num_steps=num_steps, frame_stride=stride, avoid=chosen, rng=rng)
            episodes = [list(frames.stream(episode)) for episode in held_out]
            calibration = list(frames.stream(chosen))
            reference = torch_rollout(checkpoint.policy, episodes)
            for case in cases:
                count = quantize_int8(backbone, quantized, calibration, keep_float=case.keep_float, options=case.options)
                trace = onnx_rollout(checkpoint.config, quantized, head, episodes)
                metrics = compare_traces(reference, trace)
                measured.append(
                    Int8Variant(
                        name=case.name,
                        method=case.options.describe(),
                        keep_float=case.keep_float,
                        seed=seed,
                        num_int8=count,
                        num_float=num_matmuls - count,
                        metrics=metrics,
                    )
                )
                on_variant(measured[-1])
    return Int8RangesReport(
        **provenance(),
        policy=checkpoint.config.name,
        num_calibration_frames=num_calibration_frames,
        num_steps=num_steps,
        variants=tuple(measured),
    )


def _print(variant: Int8Variant) -> None:
    sys.stderr.write(_line(variant) + "\n")


def _line(variant: Int8Variant) -> str:
    metrics = variant.metrics
    return (
        f"{variant.name:52s} seed {variant.seed} int8 {variant.num_int8:3d} cos {metrics['min_feature_cosine']:.5f} "
        f"rms {metrics['feature_relative_rms']:.4f} max {metrics['action_max_error']:.4f} "
        f"p99 {metrics['action_p99_error']:.4f} mean {metrics['action_mean_error']:.5f} "
        f"flips {metrics['gripper_flip_rate']:.4f} drift {metrics['hidden_max_drift']:.3f}"
    )


def main() -> int:
    from rfedge.data import CalvinDataset
    from rfedge.model import load_checkpoint

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", default="", help="measure the cases whose names hold this")
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint)
    table = checkpoint.policy.embedding.weight.detach().numpy()
    frames = FrameInputs(checkpoint.config, CalvinDataset.open(arguments.data), checkpoint.tokenizer, table)
    cases = [case for case in VARIANTS if arguments.only in case.name]
    measure_int8_ranges(checkpoint, frames, cases=cases, on_variant=_print).write(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
