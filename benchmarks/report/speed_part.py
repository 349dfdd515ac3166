"""The page's part on speed: every latency record, precisions, what int8 does block by block, and the head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from rfedge.benchmarks.latency.peers import PeersReport
from rfedge.benchmarks.records.schema import LatencyReport
from rfedge.benchmarks.report.chart import Bar, Range, draw_bars, draw_ranges, key
from rfedge.benchmarks.report.collect import MIXED_FORMAT, Collection
from rfedge.benchmarks.report.document import Cell, Figure, Part, Section, Table, missing, titled
from rfedge.benchmarks.report.first_table import Machines
from rfedge.benchmarks.report.words import bytes_mb, count, milliseconds, percentiles, ratio
from rfedge.benchmarks.studies.head_speed import HeadSpeedReport
from rfedge.benchmarks.success.precision_records import PrecisionsReport
from rfedge.benchmarks.success.sweep_report import SweepReport
from rfedge.bundle.artifact import Manifest
from rfedge.records.statistics import Ratio, Summary

if TYPE_CHECKING:
    from rfedge.export.mixed.record import SearchRecord

__all__ = ["speed_sections"]

_LEVELS: Final = ("p50", "p90", "p99", "max")
_NOT_TIMED: Final = "not timed"


def speed_sections(collection: Collection, machines: Machines) -> list[Section]:
    """Return the sections on speed and on what a precision changes, for the records that are there."""
    sections = []
    latencies = [(f"{name}, latency", sweep.latency) for name, sweep in collection.of(SweepReport)]
    latencies += collection.of(LatencyReport)
    sections += [Section(title, _latency(one, machines)) for title, one in titled("Latency", latencies)]
    precisions = titled("Precisions", collection.of(PrecisionsReport))
    sections += [Section(title, _precisions(one, machines)) for title, one in precisions]
    manifests = collection.of(Manifest)
    if manifests:
        sections.append(Section("Parity of the bundles", [_parity(manifests)]))
    searches = titled("Block by block", collection.of_format(MIXED_FORMAT))
    sections += [Section(title, _sensitivity(cast("SearchRecord", one))) for title, one in searches]
    peers = titled("Beside other runtimes", collection.of(PeersReport))
    sections += [Section(title, _peers(one, machines)) for title, one in peers]
    heads = titled("Policy head", collection.of(HeadSpeedReport))
    sections += [Section(title, [_head(one, machines)]) for title, one in heads]
    return sections


def _latency(report: LatencyReport, machines: Machines) -> list[Part]:
    conditions = report.conditions
    ranges = []
    for index, variant in enumerate(report.variants):
        total = variant.per_call_ms["total"]
        ranges.append(Range(variant.name, [(level, getattr(total, level)) for level in _LEVELS], index))
    drawing = draw_ranges(
        "Latency of whole policy calls",
        f"p50, p90, p99 and the largest of {conditions.iterations} calls, one line a variant",
        ranges,
        "whole policy call, ms",
    )
    legend = [(key(number, colour=7), level) for number, level in enumerate(_LEVELS)]
    caption = f"Percentiles of {conditions.iterations} calls each, from the median to the slowest."
    rows = [
        [variant.name, stage, *percentiles(summary), milliseconds(summary.mean), milliseconds(summary.max)]
        for variant in report.variants
        for stage, summary in variant.per_call_ms.items()
    ]
    told = (
        f"Milliseconds per policy call on {machines.mark(report.machine)}: {conditions.iterations} calls each after "
        f"{conditions.warmup} untimed, {conditions.order}, {count(conditions.threads, 'thread')}, "
        f"inputs {conditions.inputs}."
    )
    parts: list[Part] = [
        Figure(drawing, caption, legend),
        Table(told, ["variant", "stage", "p50", "p90", "p99", "mean", "max"], rows, text_columns=2),
    ]
    ratios: list[list[str | Cell]] = [
        [one.variant, one.baseline, one.stage, ratio(one.speedup, "")] for one in report.comparisons
    ]
    ratios.append(["the first bundle", "itself", "total", ratio(report.noise_floor, "")])
    told = (
        "Speed of a variant over a baseline, ratio of medians with 95 % interval; the last row is the noise of the machine."
    )
    parts.append(Table(told, ["variant", "over", "stage", "speed-up"], ratios, text_columns=3))
    return parts


def _precisions(report: PrecisionsReport, machines: Machines) -> list[Part]:
    rows: list[list[str | Cell]] = []
    for row in report.rows:
        reason = row.not_timed or _NOT_TIMED
        metrics = row.metrics
        times = _times(row.call_ms, reason)
        rows.append(
            [
                row.name,
                row.precision,
                *(bytes_mb(value, reason) for value in (row.bundle_bytes, row.backbone_bytes, row.load_rss_bytes)),
                *times,
                ratio(row.speedup, reason if row.call_ms is None else "the baseline itself"),
                *(_metric(metrics, name) for name in ("min_feature_cosine", "action_max_error", "gripper_flip_rate")),
                "met" if row.passed else Cell("missed", "the bundle was forced" if row.forced else ""),
            ]
        )
    columns = [
        "form",
        "precision",
        "bundle MB",
        "backbone MB",
        "loading took MB",
        *("p50 ms", "p90 ms", "p99 ms"),
        "over fp32",
        *("least feature cosine", "largest action error", "gripper flips"),
        "gates",
    ]
    told = (
        f"{report.policy} on {machines.mark(report.machine)}, {count(report.threads, 'thread')}, "
        f"{report.iterations} calls of each; errors against PyTorch over {report.parity_steps} steps with "
        f"carried state (1.0 is 20 mm or 0.05 rad); fp32 over "
        f"itself {_ratio_words(report.noise_floor)}."
    )
    parts: list[Part] = [Table(told, columns, rows, text_columns=2)]
    if report.engines:
        engines: list[list[str | Cell]] = []
        for one in report.engines:
            engine, reason = one.engine, one.failed or "no engine"
            if engine is None:
                engines.append([one.name, *[missing(reason)] * 4])
                continue
            sizes = [bytes_mb(value, "") for value in (engine.graph_bytes, engine.engine_bytes)]
            engines.append([one.name, f"{engine.builder}, SM{engine.sm}", *sizes, f"{engine.build_s:.1f}"])
        told = "TensorRT engines of the backbone, built ahead of time without a GPU and not run."
        parts.append(Table(told, ["form", "builder", "graph MB", "engine MB", "build s"], engines, text_columns=2))
    return parts


def _parity(manifests: Sequence[tuple[str, Manifest]]) -> Table:
    rows: list[list[str | Cell]] = []
    for name, manifest in manifests:
        parity = manifest.parity
        blocks = list(manifest.precision.blocks.values())
        counts = ", ".join(f"{blocks.count(precision)} {precision}" for precision in dict.fromkeys(blocks))
        verdict = "met" if parity.passed else Cell("missed", "; ".join(parity.forced_past))
        metrics = (_metric(parity.metrics, key) for key in ("min_feature_cosine", "action_max_error", "gripper_flip_rate"))
        rows.append([name, manifest.policy.name, manifest.precision.requested, counts, *metrics, verdict])
    columns = [
        "bundle",
        "policy",
        "asked for",
        "blocks",
        "least feature cosine",
        "largest action error",
        "gripper flips",
        "gates",
    ]
    return Table("What the export measured against PyTorch, with carried state.", columns, rows, text_columns=4)


def _sensitivity(search: SearchRecord) -> list[Part]:
    errors, saved = [], []
    for whole_name, block in search.blocks.items():
        name = whole_name.replace(".layers.", ".").replace(".blocks.", ".")  # the number says as much
        index = 0 if block.precision == "int8" else 1
        errors.append(Bar(name, block.metrics["action_mean_error"], f"{block.metrics['action_mean_error']:.2g}", index))
        saved.append(Bar(name, block.saved_ms, f"{block.saved_ms:.3f}", index))
    legend = [(key(0), "int8 in the plan"), (key(1), "float in the plan")]
    steps = f"over {search.num_steps} steps with carried state"
    metric = search.budget_metric
    reached = search.metrics.get(metric)
    told = f"Budget: {metric} at most {search.budget:g}"
    told += f"; the plan has {reached:.4g}." if reached is not None else "."
    ratios = [[name, f"{value:.3f}"] for name, value in search.time_ratios.items()]
    return [
        Figure(
            draw_bars("Error of int8 in one block", f"mean action error {steps}", errors, "mean action error"),
            f"Mean action error of int8 in this block alone, {steps} (1.0 is 20 mm or 0.05 rad).",
            legend,
        ),
        Figure(
            draw_bars("Milliseconds that int8 saves in one block", "of a backbone call", saved, "ms saved by int8"),
            "Milliseconds of a backbone call that int8 saves in this block, on the machine that exported.",
            legend,
        ),
        Table(f"{told} Time of a backbone call, ratio of medians.", ["form over form", "time"], ratios),
    ]


def _peers(report: PeersReport, machines: Machines) -> list[Part]:
    rows: list[list[str | Cell]] = []
    bars = []
    for row in report.rows:
        reason = row.failed or _NOT_TIMED
        memory = bytes_mb(row.peak_bytes, reason)
        rows.append([row.name, *_times(row.call_ms, reason), ratio(row.speedup, reason), memory])
        if row.call_ms is not None:
            bars.append(Bar(row.name, row.call_ms.p50, f"{milliseconds(row.call_ms.p50)} ms"))
    told = (
        f"{report.size} under {report.num_tokens} text tokens on {machines.mark(report.machine)}, "
        f"{count(report.threads, 'thread')}, {report.rounds} rounds of {report.calls} calls, each form in "
        f"a process of its own; the machine's own limit is "
        f"{milliseconds(report.limit.int8_ms)} ms in int8 and {milliseconds(report.limit.fp32_ms)} ms in fp32."
    )
    parts: list[Part] = []
    if bars:
        drawing = draw_bars(
            "Median policy call of every runtime", "milliseconds, shorter is better", bars, "p50 of a call, ms"
        )
        parts.append(Figure(drawing, "Median of whole policy calls; shorter is better."))
    parts.append(Table(told, ["form", "p50 ms", "p90 ms", "p99 ms", "speed-up", "peak MB"], rows))
    return parts


def _head(report: HeadSpeedReport, machines: Machines) -> Table:
    rows: list[list[str | Cell]] = []
    for row in report.rows:
        carry = ratio(row.to_carry, "the carrying head itself")
        rows.append([row.name, bytes_mb(row.weight_bytes, ""), *percentiles(row.call_ms), ratio(row.to_limit, ""), carry])
    told = (
        f"{report.policy}, window {report.window}, on {machines.mark(report.machine)}, "
        f"{count(report.threads, 'thread')} that read {report.bandwidth_bytes_per_s / 1e9:.1f} GB/s, {report.rounds} rounds."
    )
    columns = ["head", "weights MB", "p50 ms", "p90 ms", "p99 ms", "over reading the weights", "over carrying"]
    return Table(told, columns, rows)


def _times(summary: Summary | None, reason: str) -> list[str | Cell]:
    return [missing(reason)] * 3 if summary is None else list(percentiles(summary))


def _metric(metrics: dict[str, float], name: str) -> Cell:
    if name not in metrics:
        return missing("not in the record")
    return Cell(f"{metrics[name]:.5f}" if "cosine" in name else f"{metrics[name]:.4g}")


def _ratio_words(value: Ratio) -> str:
    return f"{value.value:.2f}x [{value.low:.2f}, {value.high:.2f}]"
