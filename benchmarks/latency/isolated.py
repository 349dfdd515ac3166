"""Variants of a policy, each timed in a process of its own: time, memory, and the machine's limit.

Full-size variants do not fit into memory together, so each is loaded beside the first bundle alone, and the two are called
in turn: a disturbance hits both. A round does so once with every variant, and with the first bundle again, which is the
noise floor. The limit is what the machine's own int8 and fp32 MatMuls and copies would need for the same work.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final, Literal, TypeVar

import numpy as np
import psutil

from rfedge.arrays import Float64
from rfedge.benchmarks.latency.isolated_process import ProcessJob, call_variant, load_variant
from rfedge.benchmarks.latency.run import LatencyPlan
from rfedge.bundle.artifact import Bundle, load_bundle
from rfedge.errors import ConfigError, GateError, first_line
from rfedge.io.atomic import atomic_directory
from rfedge.jobs.processes import worker_pool
from rfedge.jobs.progress import StageProgress
from rfedge.records.machine import Measurement, peak_rss_bytes, provenance
from rfedge.records.plan import Option, check_least
from rfedge.records.record import Record
from rfedge.records.statistics import Ratio, Summary, ratio_of_medians, summarise
from rfedge.runtimes.roofline.analytic_work import analytic_work
from rfedge.runtimes.roofline.roofline import limit_ms
from rfedge.runtimes.roofline.this_machine import measure_cpu
from rfedge.runtimes.roofline.work import STAGES

DYNAMIC: Final = "onnxruntime-dynamic"
OPTIMUM: Final = "optimum-dynamic"
QUANTIZED: Final = "backbone_quantized.onnx"  # Optimum adds "_quantized" to the source's name
# Measured by hand, optimum-onnx 0.1.0 with onnxruntime 1.31 on 0.8 GB of weights: 3.6 GB at the peak, 0.6 of them libraries.
_COPIES: Final = 4


def missing_package(name: str) -> str | None:
    """Return why a tool cannot be imported, or None."""
    if name == OPTIMUM and (find_spec("optimum") is None or find_spec("optimum.onnxruntime") is None):
        return "optimum-onnx is not installed (pip install 'rfedge[baselines]')"
    return None


def missing_memory(source: Path) -> str | None:
    """Return why the graph at `source` is too large for this machine now, or None."""
    from rfedge.export.passes.graph_files import file_bytes

    size, available = file_bytes(source), psutil.virtual_memory().available + psutil.swap_memory().free
    if _COPIES * size > available:
        needed = f"needs {_COPIES * size / 1e9:.1f} GB to quantize {size / 1e9:.1f} GB"
        return f"{needed}, {available / 1e9:.1f} GB available, swap included"
    return None


def quantize(name: str, source: Path, folder: Path) -> str | None:
    """Write `folder` with `QUANTIZED`; return why there is none, or None."""
    reason = missing_package(name) or missing_memory(source)
    if reason is not None:
        return reason
    try:
        with atomic_directory(folder, overwrite=True) as temporary, worker_pool(1) as process:
            process.submit(_quantize, name, source, temporary).result()
    except Exception as error:
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, BrokenProcessPool):
        return "its process was killed, as the system does where memory runs out"
    return f"{type(error).__name__}: {first_line(error)}"


def _quantize(name: str, source: Path, folder: Path) -> None:
    logging.disable(logging.WARNING)  # advice to whoever calls them
    if name == DYNAMIC:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            source,
            folder / QUANTIZED,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
        return
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    settings = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    quantizer = ORTQuantizer.from_pretrained(source.parent, file_name=source.name)
    quantizer.quantize(save_dir=folder, quantization_config=settings, use_external_data_format=True)


PYTORCH: Final = "PyTorch fp32"
# what `--baseline` calls a row -> what tables call it
BASELINES: Final = {
    "pytorch-bf16": "PyTorch bf16",
    DYNAMIC: "onnxruntime dynamic int8",
    OPTIMUM: "optimum-onnx dynamic int8",
    "openvino": "on OpenVINO",  # of the first bundle
}
T = TypeVar("T")
_AGAIN: Final = " (again)"
_SETTLE_S: Final = 0.02  # before a call, for the other's threads to sleep


@dataclass(frozen=True)
class IsolatedPlan:
    """Plan beside `LatencyPlan`, whose bundles, checkpoint, backend, instruction, threads and seed count."""

    latency: LatencyPlan
    # the dynamic ones are made of the first fp32 bundle, and kept nowhere
    baselines: Annotated[
        tuple[str, ...],
        Option(
            "With --isolate: a row beside the bundles; repeatable.",
            flag="--baseline",
            panel="Isolated",
            choices=tuple(BASELINES),
        ),
    ] = ()
    rounds: Annotated[int, Option("With --isolate: pairs of processes of every row.")] = 3
    calls: Annotated[int, Option("With --isolate: timed calls per process, in turn with the first bundle.")] = 5

    def __post_init__(self) -> None:
        check_least(1, {"rounds": self.rounds, "calls": self.calls, "threads": self.latency.settings.threads})
        if "pytorch-bf16" in self.baselines and self.latency.checkpoint is None:
            raise ConfigError("--baseline pytorch-bf16", got="no checkpoint", expected="--checkpoint DIR", remedy="Pass it.")


class IsolatedRow(Record):
    """One variant."""

    name: str
    call_ms: Summary | None = None  # whole policy calls of all rounds
    backbone_ms: Summary | None = None
    head_ms: Summary | None = None
    speedup: Ratio | None = None  # over the first row, called in turn with it
    peak_bytes: int | None = None  # highest resident memory of its process, the largest of all rounds
    load_s: float | None = None
    failed: str | None = None  # why it could not run


class IsolatedLimit(Record):
    """The work of the plain policy, all blocks and no merged tokens, at the machine's measured rates."""

    # int8_ops, fp32_flops: per second, measured MatMuls of 128 x 1024 x 1024
    int8_ops: float
    fp32_flops: float
    bandwidth_bytes: float  # per second, measured copies
    # int8_ms, fp32_ms: one policy call at these rates; shares: of this limit that our bundles reach
    int8_ms: float
    fp32_ms: float
    int8_share: float | None
    fp32_share: float | None


class IsolatedReport(Measurement):
    """The whole comparison; `size` names the policy. The format is called as it was when the first records were written."""

    format: Literal["rfedge-peers"] = "rfedge-peers"
    size: str
    num_tokens: int
    threads: int
    rounds: int
    calls: int
    rows: tuple[IsolatedRow, ...]
    noise_floor: Ratio
    limit: IsolatedLimit

    def row(self, name: str) -> IsolatedRow:
        """Return the row called `name`."""
        return next(row for row in self.rows if row.name == name)


_Row = ProcessJob | str  # what a row runs, or why it cannot


def run_isolated(plan: IsolatedPlan, *, progress: StageProgress = lambda *_: None) -> IsolatedReport:
    """Time every row; a baseline that cannot run is a row with the reason.

    Raises:
        ArtifactError: a bundle is damaged.
        ConfigError: the reference, or a bundle, cannot run.
    """
    bundles = {name: load_bundle(path, verify=False) for name, path in _named_bundles(plan.latency.bundles).items()}
    with _rows(plan, bundles, progress) as rows:
        return _measure(plan, bundles, rows, progress)


def _named_bundles(paths: tuple[Path, ...]) -> dict[str, Path]:
    precisions = [load_bundle(path, verify=False).manifest.precision.requested for path in paths]
    return {
        f"rfedge {precision}" + ("" if precisions.index(precision) == index else f", {path.name}"): path
        for index, (precision, path) in enumerate(zip(precisions, paths, strict=True))
    }


@contextmanager
def _rows(plan: IsolatedPlan, bundles: Mapping[str, Bundle], progress: StageProgress) -> Iterator[dict[str, _Row]]:
    """Yield name -> row, the first bundle first; graphs of baselines lie in a temporary folder meanwhile."""
    latency = plan.latency
    first, bundle = next(iter(bundles.items()))

    job = functools.partial(
        ProcessJob,
        instruction=latency.instruction,
        threads=latency.settings.threads,
        seed=latency.seed,
    )

    rows: dict[str, _Row] = {name: job(path=item.root, backend=latency.backend) for name, item in bundles.items()}
    rows[first + _AGAIN] = rows[first]
    if latency.checkpoint is not None:
        rows[PYTORCH] = job(path=latency.checkpoint, backend="torch")
        if "pytorch-bf16" in plan.baselines:
            rows[BASELINES["pytorch-bf16"]] = job(path=latency.checkpoint, backend="torch", torch_dtype="bfloat16")
    if "openvino" in plan.baselines:
        missing = None if find_spec("openvino") else "openvino is not installed (pip install 'rfedge[openvino]')"
        rows[f"{first} {BASELINES['openvino']}"] = missing or job(path=bundle.root, backend="openvino")
    plain = next((item for item in bundles.values() if item.manifest.precision.requested == "fp32"), None)
    with TemporaryDirectory() as folder:
        for baseline in (DYNAMIC, OPTIMUM):
            if baseline not in plan.baselines:
                continue
            progress(baseline, 0, 1)
            target = Path(folder) / baseline
            row: _Row = "no fp32 bundle with one graph among the bundles to quantize"
            if plain is not None and len(graphs := plain.backbone_graphs(for_cpu=False)) == 1:
                run = job(path=plain.root, backend="onnxruntime", graph=target / QUANTIZED)
                row = quantize(baseline, graphs["backbone"], target) or run
            rows[BASELINES[baseline]] = row
            progress(baseline, 1, 1)
        yield rows


def _measure(
    plan: IsolatedPlan, bundles: Mapping[str, Bundle], rows: Mapping[str, _Row], progress: StageProgress
) -> IsolatedReport:
    latency = plan.latency
    first = next(iter(rows))
    alone = rows[first]
    assert isinstance(alone, ProcessJob), "a bundle runs in a process"
    failed = {name: row for name, row in rows.items() if isinstance(row, str)}
    device = measure_cpu(latency.settings.threads)
    rng = np.random.default_rng(latency.seed)
    pairs: dict[str, list[tuple[_Result, _Result]]] = {name: [] for name in rows}
    running = [(name, row) for name, row in rows.items() if isinstance(row, ProcessJob) and name != first]
    total, done = plan.rounds * len(running), 0
    for _ in range(plan.rounds):
        for index in rng.permutation(len(running)):
            name, job = running[int(index)]
            progress("pairs of processes", done, total)
            done += 1
            if name in failed:
                continue
            try:
                pairs[name].append(_run_pair(alone, job, plan.calls, rng))
            except _EndedError as error:
                if error.job is alone:
                    remedy = "Run it alone to see why."
                    raise ConfigError(first, got=str(error), expected="a process that ends well", remedy=remedy) from error
                failed[name] = str(error)
    progress("pairs of processes", total, total)
    pairs[first] = [(one, one) for name in rows for one, _ in pairs[name]]
    made = {
        name: IsolatedRow(name=name, failed=failed[name]) if name in failed else _row(name, pairs[name], latency.seed)
        for name in rows
    }
    floor = made[first + _AGAIN].speedup
    assert floor is not None, "the first bundle ran"
    config, num_tokens = bundles[first].policy, pairs[first][0][0].num_tokens
    limits = {}
    for precision in ("int8", "fp32"):
        work = analytic_work(config, precision, text_tokens=num_tokens)
        limits[precision] = sum(limit_ms(work.stage(stage), device) for stage in STAGES)
    return IsolatedReport(
        schema_version=1,
        **provenance(),
        size=config.name,
        num_tokens=num_tokens,
        threads=latency.settings.threads,
        rounds=plan.rounds,
        calls=plan.calls,
        rows=tuple(made.values()),
        noise_floor=floor,
        limit=IsolatedLimit(
            int8_ops=device.rate("int8")[1],
            fp32_flops=device.rate("fp32")[1],
            bandwidth_bytes=device.bandwidth,
            int8_ms=limits["int8"],
            fp32_ms=limits["fp32"],
            int8_share=_share(limits["int8"], made.get("rfedge int8")),
            fp32_share=_share(limits["fp32"], made.get("rfedge fp32")),
        ),
    )


def check_assertable(plan: LatencyPlan) -> None:
    """Raise ConfigError where `assert_isolated` would have no row of PyTorch to compare with."""
    if plan.checkpoint is None:
        raise ConfigError("--assert-speedup", got="no checkpoint", expected="--checkpoint DIR", remedy="Pass it.")


def assert_isolated(report: IsolatedReport, *, speedup: float, peak_gib: float | None) -> None:
    """Hold the first bundle to a speed-up over PyTorch and to a peak of memory; raises GateError with the numbers."""
    row, pytorch = report.rows[0], report.row(PYTORCH)
    missed = []
    if pytorch.speedup is None:
        missed.append(f"no time of PyTorch ({pytorch.failed})")
    elif (faster := 1.0 / pytorch.speedup.value) < speedup:
        missed.append(f"{faster:.2f}x of {speedup:g}x")
    if peak_gib is not None and (row.peak_bytes is None or row.peak_bytes > peak_gib * 2**30):
        missed.append(f"peak {(row.peak_bytes or 0) / 2**30:.2f} GiB of {peak_gib:g} GiB")
    if missed:
        subject = f"{row.name} of {report.size}"
        raise GateError(subject, got="; ".join(missed), expected="every figure met", remedy="See the table.")


class _EndedError(Exception):
    """The process of `job` ended; the text is why."""

    def __init__(self, job: ProcessJob, text: str) -> None:
        super().__init__(text)
        self.job = job


@dataclass(frozen=True)
class _Result:
    """One process: every timed call, milliseconds by stage, and what loading cost."""

    calls: list[dict[str, float]]
    num_tokens: int
    load_s: float
    peak_bytes: int | None


def _run_pair(first: ProcessJob, job: ProcessJob, num_calls: int, rng: np.random.Generator) -> tuple[_Result, _Result]:
    """Load both, call them in turn, the order of each pair of calls at random, and return what both say."""
    with worker_pool(1) as one, worker_pool(1) as other:
        pair = ((one, first), (other, job))
        loaded = [_ask(process, load_variant, each) for process, each in pair]
        calls: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
        for _ in range(num_calls):
            for index in rng.permutation(2):
                time.sleep(_SETTLE_S)
                calls[index].append(_ask(pair[index][0], call_variant, pair[index][1]))
        peaks = [process.submit(peak_rss_bytes).result() for process, _ in pair]
    own, beside = (_Result(calls[index], *loaded[index], peaks[index]) for index in range(2))
    return own, beside


def _ask(process: ProcessPoolExecutor, what: Callable[[ProcessJob], T], job: ProcessJob) -> T:
    try:
        return process.submit(what, job).result()
    except Exception as error:
        raise _EndedError(job, _reason(error)) from error


def _row(name: str, pairs: list[tuple[_Result, _Result]], seed: int) -> IsolatedRow:
    own = [result for _, result in pairs]

    def times(results: Iterable[_Result], stage: str) -> Float64:
        return np.array([call[stage] for result in results for call in result.calls])

    calls = times(own, "total")
    return IsolatedRow(
        name=name,
        call_ms=summarise(calls),
        backbone_ms=summarise(times(own, "backbone")),
        head_ms=summarise(times(own, "head")),
        speedup=ratio_of_medians(times((first for first, _ in pairs), "total"), calls, seed=seed),
        peak_bytes=max((result.peak_bytes for result in own if result.peak_bytes is not None), default=None),
        load_s=float(np.median([result.load_s for result in own])),
    )


def _share(limit_ms: float, row: IsolatedRow | None) -> float | None:
    return None if row is None or row.call_ms is None else limit_ms / row.call_ms.p50
