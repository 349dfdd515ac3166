"""Write the measured tables of docs/precisions.md and docs/how-to/build_engines.md; a test checks that they agree.

The result comes from `python -m rfedge.benchmarks.latency.precisions`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rfedge.benchmarks.report.markdown import grid

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "precisions_playtable-small_cpu_202611.json"
TITLES = {
    "int8": "int8 (attention to the cameras in float)",
    "int8-every-product": "int8, every product",
    "int4-weight-resampler-fp32": "int4-weight, resampler in fp32",
    "mixed-half-of-int8": "mixed, budget {budget:.4f}: half of what int8 does",
    "mixed-half-of-int8-every-product": "mixed, budget {budget:.4f}: half of what every MatMul does",
}


def mb(num_bytes: int | None) -> str:
    """Return decimal megabytes, "-" for none."""
    return "-" if num_bytes is None else f"{num_bytes / 1e6:.1f}"


def ratio(speedup: dict[str, float] | None) -> str:
    """Return a ratio with its interval."""
    return "-" if speedup is None else f"{speedup['value']:.2f} [{speedup['low']:.2f}, {speedup['high']:.2f}]"


def title(row: dict[str, Any]) -> str:
    """Return what a reader calls the form."""
    return TITLES.get(row["name"], str(row["name"])).format(budget=row["budget"])


def precisions(report: dict[str, Any], link: str) -> str:
    """Return size, error and time of every form."""
    rows: list[tuple[object, ...]] = []
    for row in report["rows"]:
        metrics = row["metrics"]
        errors = (metrics[f"action_{name}_error"] for name in ("max", "p99", "mean"))
        rows.append(
            (
                title(row),
                *(mb(row[name]) for name in ("bundle_bytes", "backbone_bytes", "load_rss_bytes")),
                "-" if row["call_ms"] is None else f"{row['call_ms']['p50']:.1f}",
                *(ratio(row[name]) for name in ("speedup", "backbone_speedup")),
                f"{metrics['min_feature_cosine']:.5f}",
                f"{metrics['feature_relative_rms']:.4f}",
                *(f"{error:.4f}" for error in errors),
                f"{metrics['gripper_flip_rate']:.3f}",
                "met" if row["passed"] else "missed",
            )
        )
    columns = (
        "form",
        "bundle MB",
        "backbone MB",
        "grown by loading, MB",
        "call p50 ms",
        "speed over fp32",
        "the backbone's",
        "least feature cosine",
        "feature rms",
        "largest action error",
        "p99",
        "mean",
        "gripper flips",
        "gates",
    )
    machine, floor = report["machine"], report["noise_floor"]
    untimed = "".join(f" {title(row)}: {row['not_timed']}." for row in report["rows"] if row["not_timed"])
    return (
        f"{grid(columns, rows)}\n\n"
        f"Measured by `python -m rfedge.benchmarks.latency.precisions` with {report['policy']} on {machine['cpu']}, "
        f"{machine['usable_cores']} cores ({', '.join(machine['cpu_flags'])}), {report['threads']} threads: "
        f"{report['iterations']} calls of each form in turn, ratios of medians with their 95 % interval; fp32 over itself: "
        f"{ratio(floor)}. Errors against PyTorch over {report['parity_steps']} steps of demonstrations with carried state "
        f"(1.0 is 20 mm or 0.05 rad), {report['calibration_frames']} calibration frames. Gates are those of "
        f"`export/thresholds.py`; where one is missed the bundle was forced.{untimed} Every figure: "
        f"[{Path(link).name}]({link})."
    )


def engines(report: dict[str, Any], link: str) -> str:
    """Return the sizes of the engines; where none were built, why."""
    if not report["engines"]:
        return f"No engines were built: {report['no_engines']}"
    built = {row["name"]: row["engine"] for row in report["engines"]}
    whole = built.get("fp32")
    rows: list[tuple[object, ...]] = []
    for name, engine in built.items():
        if engine is None:
            continue
        share = "" if whole is None or name == "fp32" else f"{engine['engine_bytes'] / whole['engine_bytes']:.2f}"
        matmuls = ", ".join(f"{count} {precision}" for precision, count in engine["precisions"].items())
        sizes = (mb(engine["graph_bytes"]), mb(engine["engine_bytes"]), share, mb(engine["weights_bytes"]))
        rows.append(
            (title({"name": name, "budget": None}), *sizes, matmuls, f"{engine['build_s']:.1f}", mb(engine["peak_bytes"]))
        )
    failed = "".join(f" {row['name']}: {row['failed']}." for row in report["engines"] if row["failed"])
    columns = ("backbone", "graph MB", "engine MB", "of fp32", "weights in it, MB", "MatMuls", "build s", "peak memory MB")
    some = next((engine for engine in built.values() if engine is not None), None)
    made_by = "" if some is None else f" {some['builder']} for SM{some['sm']}, ahead of time,"
    return (
        f"{grid(columns, rows)}\n\n"
        f"Built by `python -m rfedge.benchmarks.latency.precisions`:{made_by} {report['policy']}, "
        f"each in a process of its own on "
        f"{report['machine']['usable_cores']} cores of {report['machine']['cpu']}, no GPU.{failed} Every figure: "
        f"[{Path(link).name}]({link})."
    )


PAGES = {
    "precisions": (ROOT / "docs" / "precisions.md", precisions),
    "engines": (ROOT / "docs" / "how-to" / "build_engines.md", engines),
}


def fill(name: str, text: str, report: dict[str, Any]) -> str:
    """Return the page with its measured section written anew."""
    page, render = PAGES[name]
    link = "../" * (len(page.relative_to(ROOT).parts) - 1) + RESULT.relative_to(ROOT).as_posix()
    begin, end = f"<!-- measured {name}: begin -->", f"<!-- measured {name}: end -->"
    start, stop = text.index(begin) + len(begin), text.index(end)
    return f"{text[:start]}\n{render(report, link)}\n{text[stop:]}"


def main() -> int:
    """Write both pages."""
    if not RESULT.exists():
        print(f"no {RESULT.relative_to(ROOT)}: run python -m rfedge.benchmarks.latency.precisions first", file=sys.stderr)
        return 1
    report = json.loads(RESULT.read_text())
    for name, (page, _) in PAGES.items():
        page.write_text(fill(name, page.read_text(), report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
