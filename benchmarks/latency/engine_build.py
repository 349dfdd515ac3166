"""One engine, built ahead of time in a process of its own, so that its peak of memory is the build's alone.

    python -m rfedge.benchmarks.latency.engine_build '{"bundle": DIR, "sm": 86}'

Prints one JSON document. Needs TensorRT for RTX, and no GPU.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rfedge.records.machine import peak_rss_bytes
from rfedge.records.record import Record

__all__ = ["EngineJob", "EngineResult", "build_in_process", "run_build"]


class EngineJob(Record):
    """Build the engine of `bundle`'s backbone for the compute capability `sm`, such as 86."""

    bundle: Path
    sm: int


class EngineResult(Record):
    """One finished engine.

    Attributes:
        builder: module and version, such as "tensorrt-rtx 1.7.1.116".
        graph_bytes: the ONNX graph, weights included.
        weights_bytes: weights in the engine, 0 where the builder does not say.
        precisions: number of weight MatMuls per precision that they are computed in.
        build_s: parser and builder together.
        peak_bytes: most memory the process held; None where the system does not tell.
    """

    builder: str
    sm: int
    graph_bytes: int
    engine_bytes: int
    weights_bytes: int
    precisions: dict[str, int]
    build_s: float
    peak_bytes: int | None


def build_in_process(job: EngineJob) -> EngineResult | str:
    """Build in another process; return why where it fails."""
    command = [sys.executable, "-m", "rfedge.benchmarks.latency.engine_build", job.model_dump_json()]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        return (process.stderr.strip().splitlines() or [f"ended with status {process.returncode}"])[-1]
    return EngineResult.model_validate_json(process.stdout.splitlines()[-1])


def run_build(job: EngineJob) -> EngineResult:
    """Build the engine, whether or not there is one.

    Raises:
        BackendUnavailableError: TensorRT for RTX is not installed.
        ExportError: the builder refuses the graph.
    """
    from rfedge.bundle.artifact import load_bundle
    from rfedge.export.passes.graph_files import file_bytes
    from rfedge.export.tensorrt.options import BuildOptions
    from rfedge.export.tensorrt.pipeline import build_bundle

    options = BuildOptions(target="tensorrt-rtx", ahead_of_time=(job.sm,), stage="backbone", overwrite=True)
    result = build_bundle(job.bundle, options)[0]
    record, target = result.record, result.planned.key.target
    return EngineResult(
        builder=f"{target.module} {target.version}",
        sm=job.sm,
        graph_bytes=file_bytes(load_bundle(job.bundle).path("backbone")),
        engine_bytes=record.size_bytes,
        weights_bytes=record.weights_bytes,
        precisions=record.precisions,
        build_s=record.build_seconds,
        peak_bytes=peak_rss_bytes(),
    )


if __name__ == "__main__":
    sys.stdout.write(run_build(EngineJob.model_validate_json(sys.argv[1])).model_dump_json() + "\n")
