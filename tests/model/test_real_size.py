"""RoboFlamingo-3B at its real size, with random weights: it fits, it runs, and what it costs is printed."""

import subprocess
import sys

import pytest

from rfedge.benchmarks.studies.real_size import RealSizeReport, measure_real_size


def test_the_measurement_itself_on_tiny() -> None:
    report = measure_real_size("tiny", "bf16", num_steps=2, num_tokens=5, seed=0)
    assert report.weight_bytes == 2 * report.num_parameters
    assert len(report.step_s) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("dtype", "bytes_each"), [("bf16", 2), ("fp32", 4)])
def test_the_3b_policy_takes_a_step(dtype: str, bytes_each: int) -> None:
    """In a process of its own, for its peak of memory: the weights and little beside them."""
    command = [
        sys.executable,
        "-m",
        "rfedge.benchmarks.studies.real_size",
        "--preset",
        "M-3B",
        "--dtype",
        dtype,
        "--num-steps",
        "2",
    ]
    report = RealSizeReport.model_validate_json(subprocess.run(command, check=True, capture_output=True, timeout=800).stdout)
    assert report.num_parameters == 2_599_523_639
    assert report.weight_bytes == bytes_each * report.num_parameters
    assert report.peak_bytes is not None
    print(f"M-3B {dtype}: {report.median_step_s:.2f} s a step, peak {report.peak_bytes / 1e9:.2f} GB")
    assert report.peak_bytes < 1.15 * report.weight_bytes
