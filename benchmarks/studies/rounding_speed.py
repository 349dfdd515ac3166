"""How long compensated rounding takes for one MatMul, and what single precision costs it.

    python -m rfedge.benchmarks.studies.rounding_speed

The error is that of the MatMul's output: over inputs with the covariance, and over inputs whose own rounding adds to it.
Inputs are drawn: a few hundred ways to vary, of falling strength, cut off at zero, as after an activation function.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from rfedge.export.int8.rounding import Rounded, round_compensated, round_nearest

__all__ = ["draw_matmul", "measure_rounding", "output_error"]

Float32 = npt.NDArray[np.float32]

_NUM_INPUTS = 2000


def draw_matmul(channels: int, outputs: int, rng: np.random.Generator) -> tuple[Float32, Float32, float]:
    """Return a weight (channels, outputs), the covariance of an input to it, and the scale of that input."""
    ways = min(300, channels)
    strengths = np.arange(1, ways + 1, dtype=np.float32)[:, None] ** -0.5
    directions = rng.standard_normal((ways, channels), np.float32) * strengths
    inputs: Float32 = np.maximum(rng.standard_normal((_NUM_INPUTS, ways), np.float32) @ directions, 0)
    step = float(inputs.max()) / 127
    inputs -= inputs.mean(axis=0)
    weight: Float32 = rng.standard_normal((channels, outputs), np.float32) * np.float32(channels**-0.5)
    covariance: Float32 = (inputs.T @ inputs / _NUM_INPUTS).astype(np.float32)
    return weight, covariance, step


def output_error(rounded: Rounded, weight: Float32, covariance: Float32, step: float) -> float:
    """Return the mean square error of the MatMul's output."""
    lost = rounded[0] * rounded[1] - weight
    squares = np.einsum("ij,ij->", lost, covariance @ lost, dtype=np.float64)
    noise = step**2 / 12 * np.einsum("ij,ij->", lost, lost, dtype=np.float64)
    return float((squares + noise) / weight.shape[1])


def measure_rounding(channels: int, outputs: int, *, seed: int = 0) -> dict[str, float]:
    """Return seconds of wall and processor, and errors relative to rounding to the nearest, as it is and in double."""
    weight, covariance, step = draw_matmul(channels, outputs, np.random.default_rng(seed))
    nearest = output_error(round_nearest(weight), weight, covariance, step)

    def timed(rounding: Callable[[], Rounded]) -> tuple[float, float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        rounded = rounding()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return wall, cpu, output_error(rounded, weight, covariance, step) / nearest

    wall, cpu, error = timed(lambda: round_compensated(weight, covariance, step))
    _, double_cpu, in_double = timed(lambda: round_compensated(weight, covariance, step, double_up_to=channels))
    return {"wall_s": wall, "cpu_s": cpu, "error": error, "double_cpu_s": double_cpu, "double_error": in_double}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, nargs="*", default=[256, 1024, 2048, 8192])
    parser.add_argument("--outputs", type=int, default=2048)
    arguments = parser.parse_args()
    sys.stdout.write("channels  wall s   cpu s  error of nearest's  in double: cpu s  error\n")
    for channels in arguments.channels:
        found = measure_rounding(channels, arguments.outputs)
        sys.stdout.write(
            f"{channels:8d}  {found['wall_s']:6.2f}  {found['cpu_s']:6.2f}  {found['error']:18.5f}"
            f"  {found['double_cpu_s']:16.2f}  {found['double_error']:.5f}\n"
        )
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
