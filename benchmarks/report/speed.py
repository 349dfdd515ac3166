"""Parts of the page about time, memory and power."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from rfedge.benchmarks.report.bundles import Document, Names
from rfedge.benchmarks.report.markdown import Cell, Part, Table, megabytes, milliseconds, missing, percentiles, times_faster
from rfedge.benchmarks.report.plots import Bar, plot_bars
from rfedge.runtimes.control.scheduling import describe_priority


def latency(name: str, document: Document, names: Names) -> Iterator[Part]:
    """Yield times, ratios and, where they were asked for, resources and profiles of a latency record."""
    conditions, variants = document["conditions"], document["variants"]
    bars = []
    for number, variant in enumerate(variants):
        total = variant["per_call_ms"]["total"]
        text = f"{milliseconds(total['p50'])}, p99 {milliseconds(total['p99'])}"
        bars.append(Bar(names.bundle(name, variant["name"]), total["p50"], text, high=total["p99"], colour=number % 10))
    caption = f"{name}: median of {conditions['iterations']} policy calls, the line reaches to p99."
    yield plot_bars(bars, "policy call, ms", caption)
    cells = [
        [
            names.bundle(name, variant["name"]),
            stage,
            *percentiles(summary),
            milliseconds(summary["mean"]),
            milliseconds(summary["max"]),
            milliseconds(summary["p50"] / conditions["execute_steps"]),
            *((megabytes(variant[key]) for key in ("size_bytes", "load_rss_bytes")) if stage == "total" else ("", "")),
        ]
        for variant in variants
        for stage, summary in variant["per_call_ms"].items()
    ]
    caption = (
        f"{name}: milliseconds per policy call on {names.mark(document['machine'])}, "
        f"{conditions['iterations']} calls after {conditions['warmup']} untimed, "
        f"{conditions['order']}, {conditions['threads']} threads, spinning {conditions['spinning']}, "
        f"{describe_priority(conditions.get('realtime_priority'))}."
    )
    steps = f"p50 of a control step (/{conditions['execute_steps']})"
    yield Table(caption, ["variant", "stage", "p50", "p90", "p99", "mean", "max", steps, "MB", "loaded MB"], cells, 2)
    cells = [
        [
            names.bundle(name, one["variant"]),
            names.bundle(name, one["baseline"]),
            one["stage"],
            times_faster(one["speedup"], ""),
        ]
        for one in document["comparisons"]
    ]
    cells.append(["the first bundle", "itself", "total", times_faster(document["noise_floor"], "")])
    caption = (
        f"{name}: speed over a baseline, ratio of medians with 95 % interval; the last row is the noise of the machine."
    )
    yield Table(caption, ["variant", "over", "stage", "speed-up"], cells, 3)
    if document.get("idle"):
        used = {one["name"]: one["resources"] for one in variants if one.get("resources")}
        yield from resource_tables(f"{name}: called in a row", {"(idle)": document["idle"], **used})
    if document.get("profiles") == []:
        yield f"{name}: no profile, these backends do not time their operators."
    for profile in document.get("profiles") or ():
        yield from _profile(name, profile)


def _profile(name: str, profile: Document) -> Iterator[Table]:
    """Yield the milliseconds of each kind of operator, and of each stage and block beside the machine's limit."""
    what = f"{name}, {profile['variant']}"
    cells: list[list[Cell]] = [
        [one["kind"], str(one["count"]), f"{one['ms']:.3f}", f"{one['ms'] / profile['ms']:.0%}"]
        for one in profile["operators"]
    ]
    caption = f"{what}: {profile['ms']:.2f} ms of operators a call, medians of {profile['calls']} calls."
    yield Table(caption, ["operator", "number", "ms", "share"], cells)
    cells = [
        [
            block["name"],
            f"{block['ms']:.3f}",
            "-" if block["limit_ms"] is None else f"{block['limit_ms']:.3f}",
            "-" if block["share"] is None else f"{block['share']:.0%}",
        ]
        for block in (*profile["stages"], *profile["blocks"])
    ]
    caption = (
        f"{what}: stages, blocks, and the machine's limit for their MatMuls at {profile['int8_ops'] / 1e9:.0f} int8 GOP/s, "
        f"{profile['fp32_flops'] / 1e9:.0f} fp32 GFLOP/s and {profile['bandwidth_bytes'] / 1e9:.0f} GB/s "
        f"({profile['limit_of']})."
    )
    yield Table(caption, ["stage, block", "ms", "limit ms", "of the limit"], cells)


def resource_tables(caption: str, used: Mapping[str, Document]) -> Iterator[Table]:
    """Yield memory and heat, and power where a meter was read, of named stretches of time on one machine, at least one."""
    memory: list[list[Cell]] = []
    power: list[list[Cell]] = []
    for name, use in used.items():
        before, lowest = use["available_start_bytes"], use["available_lowest_bytes"]
        fell = missing("not reported") if before is None or lowest is None else f"{(before - lowest) / 1e6:.0f}"
        hottest = max(use["temperatures"], key=lambda sensor: float(sensor["highest_c"]), default=None)
        heat = missing(use["temperatures_reason"])
        if hottest is not None:
            heat = f"{hottest['sensor']} {hottest['highest_c']:.0f} °C"
        memory.append([name, f"{use['rss_peak_bytes'] / 1e6:.0f}", fell, heat, f"{use['sampler_share']:.2%}"])
        if not use["power"]:
            memory[-1][0] = name, f"power {use['power_reason']}"
        for meter in use["power"]:
            joules = (meter["joules_per_action"], meter["joules_per_action_above_idle"])
            texts = ("" if number is None else f"{number:.4g}" for number in joules)
            power.append([name, meter["source"], f"{meter['mean_w']:.2f}", f"{meter['peak_w']:.2f}", *texts])
    columns = ["what", "memory MB", "MemAvailable fell by MB", "hottest", "sampler's share of one core"]
    yield Table(f"{caption}.", columns, memory)
    if power:
        yield Table(f"{caption}: power.", ["what", "of", "mean W", "peak W", "J/action", "above idle"], power, 2)


_NOTES: Final = {
    "onnxruntime dynamic int8": "onnxruntime's own quantize_dynamic: MatMuls, per channel",
    "optimum-onnx dynamic int8": "Optimum's settings for AVX512-VNNI, dynamic, per channel",
}


def isolated(name: str, document: Document, names: Names) -> Iterator[Part]:
    """Yield the rows of variants that were timed in processes of their own."""
    rows = document["rows"]
    timed = [(row["name"], row["call_ms"]["p50"]) for row in rows if row["call_ms"]]
    if timed:
        bars = [Bar(label, value, f"{milliseconds(value)} ms") for label, value in timed]
        yield plot_bars(bars, "p50 of a call, ms", f"{name}: median policy call; shorter is better.")
    cells = []
    for row in rows:
        reason = row["failed"] or "not timed"
        parts = [percentiles(row[key], reason)[0] for key in ("backbone_ms", "head_ms")]
        load = missing(reason) if row["load_s"] is None else f"{row['load_s']:.1f}"
        cells.append(
            [
                (row["name"], _NOTES.get(row["name"], "")),
                *percentiles(row["call_ms"], reason),
                *parts,
                times_faster(row["speedup"], reason),
                megabytes(row["peak_bytes"], reason),
                load,
            ]
        )
    floor = times_faster(document["noise_floor"], "")
    cells.append(["first bundle against itself", *[""] * 5, floor, "", ""])
    limit = document["limit"]
    shares = [
        f"{milliseconds(limit[f'{kind}_ms'])} ms in {kind}"
        + ("" if limit[f"{kind}_share"] is None else f" ({limit[f'{kind}_share']:.0%} reached)")
        for kind in ("int8", "fp32")
    ]
    caption = (
        f"{name}: {document['size']} on {names.mark(document['machine'])}, {document['threads']} threads, "
        f"{document['num_tokens']} text tokens; the machine's own limit is {' and '.join(shares)}."
    )
    columns = ["runtime", "p50 ms", "p90 ms", "p99 ms", "backbone p50", "head p50", "speed-up", "peak MB", "load s"]
    yield Table(caption, columns, cells)
