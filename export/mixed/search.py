"""The search for a mixed plan: speed of each block, sensitivity of each block, a plan within the budget, its proof by clock.

Measurements are kept in the search's folder; a search with another budget measures only plans that are new.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil

from rfedge.bundle.artifact import hash_file
from rfedge.bundle.traces import Episodes, RolloutTrace, compare_traces
from rfedge.config import PolicyConfig
from rfedge.export.int8.options import Int8Options
from rfedge.export.int8.rounded_store import RoundedStore
from rfedge.export.mixed.blocks import kept_float, quantizable_blocks
from rfedge.export.mixed.plan import Budget, choose_plan
from rfedge.export.mixed.record import BlockEvidence, SearchRecord
from rfedge.export.mixed.speed import call_times_ms, profile_blocks, saved_ms
from rfedge.export.parity import onnx_rollout
from rfedge.export.passes.graph_files import graph_files
from rfedge.export.precisions.cpu_int8 import lower_int8
from rfedge.export.quantize import quantize_int8
from rfedge.jobs.progress import StageProgress
from rfedge.recurrence import Arrays

_WORK = "work-"
_RATIOS = (("mixed", "int8"), ("mixed", "uniform"), ("mixed", "fp32"), ("int8", "fp32"), ("uniform", "fp32"))


@dataclass(frozen=True, slots=True)
class MixedSearch:
    budget: Budget
    episodes: Episodes  # frames that the calibration did not see
    folder: Path  # of measurements and rounded weights, kept between runs
    keep_float: tuple[str, ...] = ()  # whatever the evidence says
    num_rounds: int = 40


def search_plan(
    config: PolicyConfig,
    graph: Path,
    head: Path,
    frames: Sequence[Arrays],
    options: Int8Options,
    search: MixedSearch,
    *,
    progress: StageProgress = lambda *_: None,
) -> tuple[SearchRecord, RoundedStore]:
    """Return the evidence with the plan, and the rounded weights to write it with; `graph` is the backbone in fp32."""
    blocks = quantizable_blocks(graph, search.keep_float)
    key = search_key(
        [graph, head], frames, search.episodes, {**dataclasses.asdict(options), "keep_float": search.keep_float}
    )
    folder = search.folder / key
    cache, store = MeasurementCache(folder / "measurements.jsonl"), RoundedStore(folder / "rounded")
    _remove_leftovers(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{_WORK}{os.getpid()}-") as work:
        meter = ErrorMeter(config, graph, head, blocks, frames, search.episodes, options, cache, store, folder=Path(work))
        saved = meter.saved_ms(search.num_rounds, progress)
        alone = {}
        for done, block in enumerate(blocks):
            progress("sensitivity", done, len(blocks))
            alone[block] = meter.measure([block])
        progress("sensitivity", len(blocks), len(blocks))
        plan = choose_plan(
            saved,
            # The mean tells blocks apart better than the one worst step does, whatever the budget is on.
            {block: metrics["action_mean_error"] for block, metrics in alone.items()},
            lambda chosen: search.budget.holds(meter.measure(chosen)),
            on_measurement=lambda done, most: progress("plan", done, most),
        )
        progress("plan", 1, 1)
        ratios, int8_metrics = meter.compare(plan, search.num_rounds, progress)
        metrics, uniform_metrics = meter.measure(plan), meter.measure(blocks)
    reasons = {True: "int8 saves time within the budget", False: "its error is worth more than the time it saves"}
    record = SearchRecord(
        budget_metric=search.budget.metric,
        budget=search.budget.limit,
        num_steps=sum(len(episode) for episode in search.episodes),
        blocks={
            block: BlockEvidence(
                precision="int8" if block in plan else "fp32",
                reason=reasons[block in plan] if saved[block] > 0 else "int8 is not faster here",
                saved_ms=saved[block],
                metrics=alone[block],
            )
            for block in blocks
        },
        metrics=metrics,
        int8_metrics=int8_metrics,
        uniform_metrics=uniform_metrics,
        time_ratios=ratios,
        num_measured=meter.num_measured,
        num_reused=cache.num_reused,
    )
    return record, store


def _remove_leftovers(folder: Path) -> None:
    """Remove the graphs of killed searches."""
    for path in folder.glob(f"{_WORK}*"):
        process = path.name.removeprefix(_WORK).partition("-")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(path, ignore_errors=True)


Metrics = dict[str, float]


@dataclass(eq=False)
class ErrorMeter:
    """Measures sets of int8 blocks, each set once."""

    config: PolicyConfig
    graph: Path
    head: Path
    blocks: Mapping[str, Sequence[str]]
    frames: Sequence[Arrays]
    episodes: Episodes
    options: Int8Options
    cache: MeasurementCache
    store: RoundedStore
    folder: Path  # for graphs that live as long as one measurement
    num_measured: int = 0
    _reference: RolloutTrace | None = field(default=None, init=False)

    def measure(self, int8: Iterable[str]) -> Metrics:
        """Return the metrics of `compare_traces` with the blocks `int8` in int8 and all others in float."""
        chosen = [block for block in self.blocks if block in set(int8)]
        found: Metrics | None = self.cache.get(measure="error", int8=chosen)
        if found is None:
            with tempfile.TemporaryDirectory(dir=self.folder, prefix="variant-") as folder:
                found = self._roll(self.write(chosen, Path(folder)) if chosen else self.graph)
            self.cache.put(found, measure="error", int8=chosen)
            self.num_measured += 1
        return found

    def _roll(self, graph: Path) -> Metrics:
        if self._reference is None:
            self._reference = onnx_rollout(self.config, self.graph, self.head, self.episodes)
        same = graph == self.graph
        rolled = self._reference if same else onnx_rollout(self.config, graph, self.head, self.episodes)
        return compare_traces(self._reference, rolled)

    def write(self, int8: Iterable[str] | None, folder: Path, *, progress: StageProgress = lambda *_: None) -> Path:
        """Write the form for CPUs with these blocks in int8 to `folder` and return it; None is the precision's choice."""
        quantized, lowered = folder / "quantized.onnx", folder / "quantized-cpu.onnx"
        keep = None if int8 is None else kept_float(self.blocks, int8)
        options, store = self.options, self.store
        quantize_int8(self.graph, quantized, self.frames, keep_float=keep, options=options, store=store, progress=progress)
        lower_int8(quantized, lowered)
        return lowered

    def saved_ms(self, num_rounds: int, progress: StageProgress) -> dict[str, float]:
        """Return block -> milliseconds saved; on the way all MatMuls are rounded, once for the whole search."""
        found: dict[str, float] | None = self.cache.get(measure="saved_ms", num_rounds=num_rounds)
        if found is None:
            with tempfile.TemporaryDirectory(dir=self.folder, prefix="all-") as folder:
                everything = self.write(self.blocks, Path(folder), progress=progress)
                in_float, in_int8 = profile_blocks(
                    [self.graph, everything],
                    self.blocks,
                    self.frames,
                    num_rounds=num_rounds,
                    on_round=lambda done, total: progress("speed", done, total),
                )
            found = saved_ms(in_float, in_int8)
            self.cache.put(found, measure="saved_ms", num_rounds=num_rounds)
        return found

    def compare(self, plan: frozenset[str], num_rounds: int, progress: StageProgress) -> tuple[dict[str, float], Metrics]:
        """Return ratios of whole calls and the metrics of plain int8: what the plan is to be compared with."""
        ratios_of: dict[str, Any] = {"measure": "time_ratios", "num_rounds": num_rounds, "int8": sorted(plan)}
        found: dict[str, float] | None = self.cache.get(**ratios_of)
        plain: Metrics | None = self.cache.get(measure="error", form="int8")
        if found is not None and plain is not None:
            return found, plain
        with ExitStack() as folders:
            chosen = {"mixed": plan, "int8": None, "uniform": self.blocks}
            graphs = {
                name: self.write(int8, Path(folders.enter_context(tempfile.TemporaryDirectory(dir=self.folder))))
                for name, int8 in chosen.items()
            } | {"fp32": self.graph}
            if plain is None:
                plain = self._roll(graphs["int8"])
                self.cache.put(plain, measure="error", form="int8")
            times = call_times_ms(
                graphs, self.frames, num_rounds=num_rounds, on_round=lambda done, total: progress("compare", done, total)
            )
        medians = {graph: float(np.median(values)) for graph, values in times.items()}
        found = {f"{one}/{other}": medians[one] / medians[other] for one, other in _RATIOS}
        self.cache.put(found, **ratios_of)
        return found, plain


def search_key(
    graphs: Sequence[Path], calibration: Iterable[Arrays], episodes: Iterable[Iterable[Arrays]], options: Mapping[str, Any]
) -> str:
    """Return 32 hex digits of everything that measurements depend on; another search has another file."""
    digest = hashlib.sha256(json.dumps({**options, "onnxruntime": onnxruntime.__version__}).encode())
    for graph in graphs:
        for path in graph_files(graph):
            digest.update(hash_file(path).encode())
    for name, frames in [("calibration", list(calibration)), *(("episode", list(episode)) for episode in episodes)]:
        digest.update(f"{name} {len(frames)}".encode())
        for frame in frames:
            for key in sorted(frame):
                array = np.ascontiguousarray(frame[key])
                digest.update(f"{key} {array.dtype} {array.shape}".encode())
                digest.update(array.tobytes())
    return digest.hexdigest()[:32]


class MeasurementCache:
    """Measurements by the fields that they depend on, appended and synced one by one; a line that a kill cut is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Any] = {}
        self.num_reused = 0
        if path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            for line in whole.splitlines():
                document = json.loads(line)
                self._found[_key(document["of"])] = document["value"]
            if whole != content:
                with path.open("r+b") as file:
                    file.truncate(len(whole))
        path.parent.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self._found)

    def get(self, **of: Any) -> Any:
        value = self._found.get(_key(of))
        self.num_reused += value is not None
        return value

    def put(self, value: Any, **of: Any) -> None:
        self._found[_key(of)] = value
        with self._path.open("a") as file:
            file.write(json.dumps({"of": of, "value": value}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _key(of: Mapping[str, Any]) -> str:
    return json.dumps(of, sort_keys=True)
