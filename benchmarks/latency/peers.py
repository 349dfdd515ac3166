"""A policy at its real size against its peers: PyTorch, onnxruntime, Optimum, OpenVINO; time, memory, the machine's limit.

No two full-size variants fit into memory with a third, so each runs in a process of its own, in rounds: every round runs
every variant once, in a new order, and the int8 bundle twice (the second is the noise floor). Ratios are of medians with
whole rounds resampled. The limit is what the machine's own int8 and fp32 MatMuls and copies, measured before, would
need for the same work.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import numpy as np

from rfedge.benchmarks.latency.optimum_quantize import QUANTIZED
from rfedge.benchmarks.latency.peer_artifacts import WITHOUT_OPTIMUM
from rfedge.benchmarks.latency.peer_worker import WorkerJob, WorkerResult
from rfedge.config import preset
from rfedge.errors import ConfigError, GateError, did_you_mean
from rfedge.jobs.progress import StageProgress
from rfedge.records.machine import Measurement, provenance
from rfedge.records.plan import check_least
from rfedge.records.record import Record
from rfedge.records.statistics import Ratio, Summary, ratio_of_medians, summarise
from rfedge.runtimes.roofline.analytic_work import analytic_work
from rfedge.runtimes.roofline.devices import Efficiency
from rfedge.runtimes.roofline.roofline import predict
from rfedge.runtimes.roofline.this_machine import measure_cpu

__all__ = ["NOTES", "ROWS", "PeerLimit", "PeerRow", "PeersPlan", "PeersReport", "assert_peers", "run_peers"]

REFERENCE: Final = "PyTorch fp32"
OURS: Final = "rfedge int8"
AGAIN: Final = "rfedge int8 (again)"
EVERY_MATMUL: Final = "rfedge int8, every product"
DYNAMIC: Final = "onnxruntime dynamic int8"
OPTIMUM: Final = "optimum-onnx dynamic int8"
ROWS: Final = (
    REFERENCE,
    "PyTorch bf16",
    "rfedge fp32",
    DYNAMIC,
    OPTIMUM,
    OURS,
    AGAIN,
    EVERY_MATMUL,
    "rfedge int8 on OpenVINO",
)
# What a reader must know about a row.
NOTES: Final = {
    EVERY_MATMUL: "with --keep-float none; the default keeps the attention of queries in float, for accuracy",
    DYNAMIC: "written weight by weight, because onnxruntime's quantizer needs three times the graph's size in memory; "
    "the graph is the quantizer's own, node for node and byte for byte",
    OPTIMUM: "Optimum's settings for AVX512-VNNI, dynamic, per channel",
}


@dataclass(frozen=True)
class PeersPlan:
    """What to measure.

    Attributes:
        size: a preset; its weights are random.
        folder: holds checkpoint/, fp32/, int8/, dynamic/ and optimum/, see `prepare_peers`.
        rows: which of `ROWS`; the reference and both int8 rows are always among them.
        rounds: processes of every row.
        calls: timed calls a process.
    """

    size: str
    folder: Path
    rows: tuple[str, ...] = ROWS
    rounds: int = 3
    calls: int = 5
    threads: int = 2
    seed: int = 0
    instruction: str = "pull the handle to open the drawer"

    def __post_init__(self) -> None:
        """Refuse a plan that measures nothing.

        Raises:
            ConfigError: no round or call, or an unknown row.
        """
        check_least(1, {"rounds": self.rounds, "calls": self.calls, "threads": self.threads})
        for row in self.rows:
            if row not in ROWS:
                raise ConfigError("row", got=repr(row), expected=did_you_mean(row, ROWS), remedy="Choose one of these rows.")


class PeerRow(Record):
    """One variant.

    Attributes:
        call_ms: whole policy calls of all rounds.
        speedup: over the reference; None where a row could not run.
        peak_bytes: highest resident memory of its process, the largest of all rounds.
        failed: why it could not run.
    """

    name: str
    call_ms: Summary | None = None
    backbone_ms: Summary | None = None
    head_ms: Summary | None = None
    speedup: Ratio | None = None
    peak_bytes: int | None = None
    load_s: float | None = None
    failed: str | None = None


class PeerLimit(Record):
    """What the machine could do at best: the same work at its measured rates.

    Attributes:
        int8_ops, fp32_flops: per second, measured MatMuls of 128 x 1024 x 1024.
        bandwidth_bytes: per second, measured copies.
        int8_ms, fp32_ms: one policy call at these rates.
        int8_share, fp32_share: of this limit that our bundles reach.
    """

    int8_ops: float
    fp32_flops: float
    bandwidth_bytes: float
    int8_ms: float
    fp32_ms: float
    int8_share: float | None
    fp32_share: float | None


class PeersReport(Measurement):
    """The whole comparison."""

    format: Literal["rfedge-peers"] = "rfedge-peers"
    size: str
    num_tokens: int
    threads: int
    rounds: int
    calls: int
    rows: tuple[PeerRow, ...]
    noise_floor: Ratio
    limit: PeerLimit

    def row(self, name: str) -> PeerRow:
        """Return the row called `name`."""
        return next(row for row in self.rows if row.name == name)


def run_peers(plan: PeersPlan, *, progress: StageProgress = lambda *_: None) -> PeersReport:
    """Time every row of a prepared folder.

    Raises:
        ConfigError: the folder lacks what a row needs.
    """
    rows = [row for row in ROWS if row in plan.rows or row in (REFERENCE, OURS, AGAIN)]
    failed = {row: reason for row in rows if (reason := _missing(plan, row)) is not None}
    for row in (REFERENCE, OURS):
        if row in failed:
            raise ConfigError(f"peers in {plan.folder}", got=failed[row], expected=row, remedy="Prepare it again.")
    device = measure_cpu(plan.threads)
    rng = np.random.default_rng(plan.seed)
    results: dict[str, list[WorkerResult]] = {row: [] for row in rows}
    running = [row for row in rows if row not in failed]
    total, done = plan.rounds * len(running), 0
    for _ in range(plan.rounds):
        for index in rng.permutation(len(running)):
            row = running[int(index)]
            progress(row, done, total)
            done += 1
            if row in failed:
                continue
            outcome = _run(plan, row)
            if isinstance(outcome, str):
                failed[row] = outcome
            else:
                results[row].append(outcome)
    progress("done", total, total)
    reference = _calls(results[REFERENCE])
    made = [
        PeerRow(name=row, failed=failed[row]) if row in failed else _row(row, results[row], reference, plan.seed)
        for row in rows
    ]
    ours, again = _calls(results[OURS]), _calls(results[AGAIN])
    num_tokens = results[OURS][0].num_tokens
    limits = {}
    for precision in ("int8", "fp32"):
        work = analytic_work(preset(plan.size), precision, text_tokens=num_tokens)
        limits[precision] = predict(work, dataclasses.replace(device, efficiency=Efficiency(1.0, 1.0))).total_ms
    by_name = {row.name: row for row in made}
    return PeersReport(
        schema_version=1,
        **provenance(),
        size=plan.size,
        num_tokens=num_tokens,
        threads=plan.threads,
        rounds=plan.rounds,
        calls=plan.calls,
        rows=tuple(made),
        noise_floor=ratio_of_medians(ours, again, seed=plan.seed),
        limit=PeerLimit(
            int8_ops=device.rate("int8")[1],
            fp32_flops=device.rate("fp32")[1],
            bandwidth_bytes=device.bandwidth,
            int8_ms=limits["int8"],
            fp32_ms=limits["fp32"],
            int8_share=_share(limits["int8"], by_name[OURS]),
            fp32_share=_share(limits["fp32"], by_name.get("rfedge fp32")),
        ),
    )


def assert_peers(report: PeersReport, *, int8: float, fp32: float, peak_gib: float) -> None:
    """Hold a report to the least speed-ups over eager PyTorch and the most memory of the int8 bundle.

    Raises:
        GateError: one is missed; the text holds the numbers.
    """
    missed = []
    for name, least in ((OURS, int8), ("rfedge fp32", fp32)):
        speedup = report.row(name).speedup
        if speedup is None or speedup.value < least:
            missed.append(f"{name} {0.0 if speedup is None else speedup.value:.2f}x of {least:g}x")
    peak = report.row(OURS).peak_bytes
    if peak is None or peak > peak_gib * 2**30:
        missed.append(f"{OURS} peak {(peak or 0) / 2**30:.2f} GiB of {peak_gib:g} GiB")
    if missed:
        raise GateError(
            f"peers of {report.size}", got="; ".join(missed), expected="every figure met", remedy="See the table."
        )


def _missing(plan: PeersPlan, row: str) -> str | None:
    """Return why a row cannot run here, or None."""
    job = _job(plan, row)
    if not job.path.is_dir():
        return f"no {job.path.name}/ in the folder"
    if job.graph is not None and not job.graph.is_file():
        noted = plan.folder / WITHOUT_OPTIMUM
        if row == OPTIMUM and noted.is_file():
            return noted.read_text()
        return f"no {job.graph.name} in the folder"
    if job.backend == "openvino" and find_spec("openvino") is None:
        return "openvino is not installed (pip install 'rfedge[openvino]')"
    return None


def _job(plan: PeersPlan, row: str) -> WorkerJob:
    common = {"instruction": plan.instruction, "num_calls": plan.calls, "threads": plan.threads, "seed": plan.seed}
    folder = plan.folder
    plain: dict[str, object] = {"path": folder / "fp32", "backend": "onnxruntime"}
    specific: dict[str, dict[str, object]] = {
        REFERENCE: {"path": folder / "checkpoint", "backend": "torch"},
        "PyTorch bf16": {"path": folder / "checkpoint", "backend": "torch", "torch_dtype": "bfloat16"},
        "rfedge fp32": plain,
        DYNAMIC: {**plain, "graph": folder / "dynamic" / "dynamic.onnx"},
        OPTIMUM: {**plain, "graph": folder / "optimum" / QUANTIZED},
        OURS: {"path": folder / "int8", "backend": "onnxruntime"},
        AGAIN: {"path": folder / "int8", "backend": "onnxruntime"},
        EVERY_MATMUL: {"path": folder / "int8-all", "backend": "onnxruntime"},
        "rfedge int8 on OpenVINO": {"path": folder / "int8", "backend": "openvino"},
    }
    return WorkerJob.model_validate({**common, **specific[row]})


def _run(plan: PeersPlan, row: str) -> WorkerResult | str:
    """Run one process; a row that fails says why in its last line."""
    command = [sys.executable, "-m", "rfedge.benchmarks.latency.peer_worker", _job(plan, row).model_dump_json()]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"ended with status {process.returncode}"]
        return lines[-1]
    return WorkerResult.model_validate_json(process.stdout)


def _calls(results: list[WorkerResult]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([value for result in results for value in result.call_ms])


def _row(
    name: str, results: list[WorkerResult], reference: np.ndarray[tuple[int], np.dtype[np.float64]], seed: int
) -> PeerRow:
    calls = _calls(results)
    peaks = [result.peak_bytes for result in results if result.peak_bytes is not None]
    return PeerRow(
        name=name,
        call_ms=summarise(calls),
        backbone_ms=summarise(np.array([value for result in results for value in result.backbone_ms])),
        head_ms=summarise(np.array([value for result in results for value in result.head_ms])),
        speedup=ratio_of_medians(reference, calls, seed=seed),
        peak_bytes=max(peaks, default=None),
        load_s=float(np.median([result.load_s for result in results])),
    )


def _share(limit_ms: float, row: PeerRow | None) -> float | None:
    return None if row is None or row.call_ms is None else limit_ms / row.call_ms.p50
