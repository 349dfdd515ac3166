"""How near the head comes to the machine's limit: every step reads all weights of an LSTM, so that limit is the memory.

    python -m rfedge.benchmarks.studies.head_speed --preset M-3B --realtime-priority 50 --output OUT.json --assert-window 3

In one run, call after call in turn: reading as many bytes as the weights take (the limit), the head that carries its state,
the head that acts from a window (its LSTMs side by side), the replay of the window which that replaces, each as a bundle
stores it and with int8 weights. Weights are random: they change no time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from rfedge.benchmarks.latency.garbage import collector_at_rest
from rfedge.config import PolicyConfig, preset
from rfedge.contract import GraphContract, policy_contract
from rfedge.errors import GateError
from rfedge.records.machine import Measurement, provenance
from rfedge.records.record import Record
from rfedge.records.statistics import Ratio, Summary, ratio_of_medians, summarise
from rfedge.runtimes.control.scheduling import check_priority, realtime_priority

__all__ = ["HeadRow", "HeadSpeedReport", "assert_near_the_limit", "measure_head"]

Array = npt.NDArray[Any]
Call = Callable[[], object]
LIMIT: Final = "reading the weights"
# OpenBLAS keeps several threads turning for some 20 ms after a call, on the cores that the next one needs.
_REST_S: Final = 0.03


class HeadRow(Record):
    """One way to run the head.

    Attributes:
        name: time-keeping and form.
        weight_bytes: what one call must read, once.
        call_ms: of a call.
        to_limit: median over the median time in which the machine reads `weight_bytes`, in the same rounds.
        to_carry: median over that of the carrying head in the same form; None for that head itself.
    """

    name: str
    weight_bytes: int
    call_ms: Summary
    to_limit: Ratio
    to_carry: Ratio | None


class HeadSpeedReport(Measurement):
    """The whole document.

    Attributes:
        bandwidth_bytes_per_s: by `threads` threads that read an array no cache holds.
        realtime_priority: of all threads that take part, see `rfedge.runtimes.control.scheduling`; None is ordinary.
        noise: the limit against itself.
    """

    format: Literal["rfedge-head-speed"] = "rfedge-head-speed"
    schema_version: int = 1
    policy: str
    window: int
    threads: int
    rounds: int
    realtime_priority: int | None = None
    bandwidth_bytes_per_s: float
    noise: Ratio
    rows: tuple[HeadRow, ...]

    def row(self, name: str) -> HeadRow:
        return next(row for row in self.rows if row.name == name)


def measure_head(
    config: PolicyConfig,
    *,
    threads: int = 2,
    rounds: int = 60,
    seed: int = 0,
    priority: int | None = None,
    on_round: Callable[[int], None] = lambda _: None,
) -> HeadSpeedReport:
    """Trace the head of `config` with random weights and time every way to run it.

    Raises:
        ConfigError: its head is no LSTM.
        BackendUnavailableError: this user may not have `priority`.
    """
    # Around the runners, too: their threads are begun with them.
    with tempfile.TemporaryDirectory() as folder, realtime_priority(check_priority(priority), inherited=True):
        calls, weight_bytes = _calls(config, Path(folder), threads, seed)
        reader = _Reader(threads)
        times: dict[str, list[float]] = {name: [] for name in (LIMIT, "again", *calls)}
        with collector_at_rest():
            for index in range(rounds + 1):
                for name in times:
                    call = calls.get(name, reader)
                    time.sleep(_REST_S if threads > 1 else 0.0)
                    started_ns = time.perf_counter_ns()
                    call()
                    if index:  # the first round warms up
                        times[name].append((time.perf_counter_ns() - started_ns) / 1e6)
                on_round(index)
    series = {name: np.array(values) for name, values in times.items()}
    rows = []
    for name in calls:
        limit_ms = series[LIMIT] * (weight_bytes[name] / reader.num_bytes)
        _, *form = name.split(" ", 1)  # "window int8" is compared with "carry int8"
        carry = " ".join(["carry", *form])
        rows.append(
            HeadRow(
                name=name,
                weight_bytes=weight_bytes[name],
                call_ms=summarise(series[name]),
                to_limit=ratio_of_medians(series[name], limit_ms, seed=seed),
                to_carry=None if name == carry else ratio_of_medians(series[name], series[carry], seed=seed),
            )
        )
    return HeadSpeedReport(
        **provenance(),
        policy=config.name,
        window=config.window,
        threads=threads,
        rounds=rounds,
        realtime_priority=priority,
        bandwidth_bytes_per_s=reader.num_bytes / float(np.median(series[LIMIT])) * 1e3,
        noise=ratio_of_medians(series["again"], series[LIMIT], seed=seed),
        rows=tuple(rows),
    )


def _calls(config: PolicyConfig, folder: Path, threads: int, seed: int) -> tuple[dict[str, Call], dict[str, int]]:
    """Return every way to run the head, and the bytes of the weights that it reads."""
    import torch

    from rfedge.export.passes.standard import apply_passes, head_passes
    from rfedge.export.precisions.dynamic_head import quantize_head
    from rfedge.export.trace import trace_graph
    from rfedge.model.head import build_head
    from rfedge.runtimes.backends.base import GraphRunner, RuntimeSettings
    from rfedge.runtimes.backends.ort import OrtRunner

    torch.manual_seed(seed)
    head = build_head(config.head, config.feature_size, config.chunk_size, config.window)
    num_weights = sum(parameter.numel() for parameter in head.parameters())
    rng = np.random.default_rng(seed)
    settings = RuntimeSettings(threads=threads)
    calls: dict[str, Call] = {}
    num_bytes: dict[str, int] = {}
    for name in ("carry", "window", "replay"):
        changes = {"time_keeping": "window" if name == "window" else "carry"}
        contract = policy_contract(config.model_copy(update=changes)).head
        if name == "replay":
            contract = _replaying(contract, config.window)
        path = folder / f"{name}.onnx"
        trace_graph(head, contract, path)
        apply_passes(path, path, head_passes())
        quantized = quantize_head(path, folder / f"{name}-int8.onnx")[0]
        runners: list[tuple[str, GraphRunner, int]] = [
            (name, OrtRunner("head", path, contract, settings), 4),
            (f"{name} int8", OrtRunner("head", quantized, contract, settings), 1),
        ]
        for label, runner, size in runners:
            runner.activate()
            calls[label] = _call(runner.infer, contract.sample_inputs(rng))
            num_bytes[label] = size * num_weights
    return calls, num_bytes


def _call(infer: Callable[[Mapping[str, Array]], object], inputs: Mapping[str, Array]) -> Call:
    return lambda: infer(inputs)


def _replaying(contract: GraphContract, window: int) -> GraphContract:
    """The head as it would be called to replay a window: all its features at once, from zero."""
    features = contract.input("features")
    longer = features.model_copy(update={"shape": (1, window, features.shape[-1])})
    return contract.model_copy(update={"inputs": (longer, *contract.inputs[1:])})


class _Reader:
    """Reads an array that no cache holds, each thread its part; a dot product with itself does nothing else worth time."""

    num_bytes: Final = 1 << 28

    def __init__(self, threads: int) -> None:
        self._parts = np.array_split(np.ones(self.num_bytes // 4, np.float32), threads)

    def __call__(self) -> None:
        threads = [threading.Thread(target=np.dot, args=(part, part)) for part in self._parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def assert_near_the_limit(report: HeadSpeedReport, *, carry: float | None, window: float | None) -> None:
    """Raise GateError unless the carrying head is near the limit, and the window near the carrying head.

    Args:
        report: what was measured.
        carry: most that carrying may take, in times of reading the weights, for fp32 and int8; None for any.
        window: most that a window may take, in times of carrying; None for any.
    """
    for form in ("", " int8"):
        found = report.row(f"carry{form}").to_limit.value
        if carry is not None and found > carry:
            raise GateError(
                f"head carry{form}",
                got=f"{found:.2f}x the time of its reads",
                expected=f"<= {carry}x",
                remedy="Measure on a quiet machine.",
            )
        ratio = report.row(f"window{form}").to_carry
        if window is not None and ratio is not None and ratio.value > window:
            raise GateError(
                f"head window{form}",
                got=f"{ratio.value:.2f}x carry",
                expected=f"<= {window}x",
                remedy="Measure on a quiet machine.",
            )


def main() -> int:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="M-3B")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--realtime-priority", type=int, help="schedule all threads before ordinary programs, 1 to 97")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--assert-carry", type=float, help="most times the limit that carrying may take")
    parser.add_argument("--assert-window", type=float, help="most times carrying that a window may take")
    arguments = parser.parse_args()
    report = measure_head(
        preset(arguments.preset),
        threads=arguments.threads,
        rounds=arguments.rounds,
        priority=arguments.realtime_priority,
    )
    if arguments.output is not None:
        report.write(arguments.output)
    table = Table(title=f"{report.policy}, {report.threads} threads, {report.bandwidth_bytes_per_s / 1e9:.1f} GB/s")
    for column in ("head", "p50, ms", "p99, ms", "times its reads", "times carry"):
        table.add_column(column, justify="left" if column == "head" else "right")
    for row in report.rows:
        carry = "" if row.to_carry is None else f"{row.to_carry.value:.2f}"
        times = (f"{row.call_ms.p50:.2f}", f"{row.call_ms.p99:.2f}", f"{row.to_limit.value:.2f}", carry)
        table.add_row(row.name, *times)
    Console(stderr=True).print(table)
    try:
        assert_near_the_limit(report, carry=arguments.assert_carry, window=arguments.assert_window)
    except GateError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
