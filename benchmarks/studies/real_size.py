"""One policy step at real size with random weights, in PyTorch: does this machine hold it, and how long does it take?

    python -m rfedge.benchmarks.studies.real_size --preset M-3B --dtype bf16

Prints one JSON document. Weights are drawn in the dtype they stay in, so the peak is that of a loaded checkpoint.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Literal

import numpy as np
import torch

from rfedge.config import preset, preset_names
from rfedge.contract import policy_contract
from rfedge.model.meta import random_policy
from rfedge.records.machine import Measurement, peak_rss_bytes, provenance

__all__ = ["RealSizeReport", "measure_real_size"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class RealSizeReport(Measurement):
    """What one preset costs in eager PyTorch.

    Attributes:
        num_parameters, weight_bytes: of the whole policy, what no action needs included.
        build_s: drawing the weights.
        step_s: each step, backbone and head, under an instruction of `num_tokens`.
        peak_bytes: highest resident memory of the process; None where the system does not tell.
    """

    format: Literal["rfedge-real-size"] = "rfedge-real-size"
    preset: str
    dtype: str
    num_threads: int
    num_tokens: int
    num_parameters: int
    weight_bytes: int
    build_s: float
    step_s: tuple[float, ...]
    peak_bytes: int | None

    @property
    def median_step_s(self) -> float:
        return statistics.median(self.step_s)


def measure_real_size(name: str, dtype: str, *, num_steps: int, num_tokens: int, seed: int) -> RealSizeReport:
    """Build `name` with random weights and run `num_steps` policy steps with carried state.

    Raises:
        FloatingPointError: an action is NaN or infinite.
    """
    started = time.perf_counter()
    policy = random_policy(preset(name), seed, _DTYPES[dtype])
    built = time.perf_counter()
    contract = policy_contract(policy.config)
    rng = np.random.default_rng(seed)
    arrays = contract.backbone.sample_inputs(rng, dynamic_size=num_tokens)
    inputs = {
        key: tensor.to(_DTYPES[dtype]) if tensor.is_floating_point() else tensor
        for key, tensor in ((key, torch.from_numpy(array)) for key, array in arrays.items())
    }
    state = {spec.name: torch.zeros(spec.shape, dtype=_DTYPES[dtype]) for spec in contract.head.inputs[1:]}
    steps = []
    with torch.inference_mode():
        for _ in range(num_steps):
            before = time.perf_counter()
            feature = policy.backbone(**inputs)
            pose, gripper, *recurrent = policy.head(feature[:, None], **state)
            state = dict(zip(state, recurrent, strict=True))
            steps.append(time.perf_counter() - before)
            if not bool(torch.isfinite(pose).all() and torch.isfinite(gripper).all()):
                raise FloatingPointError(f"{name} in {dtype}: an action is not finite")
    parameters = list(policy.parameters())
    return RealSizeReport(
        schema_version=1,
        **provenance(),
        preset=name,
        dtype=dtype,
        num_threads=torch.get_num_threads(),
        num_tokens=num_tokens,
        num_parameters=sum(parameter.numel() for parameter in parameters),
        weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        build_s=built - started,
        step_s=tuple(steps),
        peak_bytes=peak_rss_bytes(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="One policy step at real size with random weights.")
    parser.add_argument("--preset", default="M-3B", choices=preset_names())
    parser.add_argument("--dtype", default="bf16", choices=list(_DTYPES))
    parser.add_argument("--num-steps", type=int, default=3)
    parser.add_argument("--num-tokens", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    report = measure_real_size(
        options.preset, options.dtype, num_steps=options.num_steps, num_tokens=options.num_tokens, seed=options.seed
    )
    sys.stdout.write(report.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    main()
