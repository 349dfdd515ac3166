"""Write the README's measured table from the committed result; a test checks that the two agree."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "demo_playtable-small_cpu_202611.json"
BEGIN, END = "<!-- measured table: begin -->", "<!-- measured table: end -->"


def render(result: dict[str, Any], link: str) -> str:
    """Return the Markdown table and its caption for a results.json of `make pipeline`."""
    latency = result["latency"]
    variants = {variant["role"] + variant["precision"]: variant for variant in latency["variants"]}
    rows = [("PyTorch eager, fp32", variants["torchfp32"], None)]
    rows += [(f"bundle, {name}", variants[f"bundle{name}"], result["bundles"][name]) for name in ("fp32", "int8")]
    baseline = rows[0][1]["per_call_ms"]["total"]["p50"]
    steps = latency["conditions"]["execute_steps"]
    columns = (
        "playtable-small",
        "backbone p50 / p99 ms",
        "head p50 / p99 ms",
        "call p50 / p99 ms",
        "speed-up",
        f"p50 ms per control step, {steps} per call",
        "bundle MB",
        "feature cosine",
        "action error",
    )
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name, variant, bundle in rows:
        stages = variant["per_call_ms"]
        total = stages["total"]["p50"]
        cells = [
            name,
            *(f"{stages[stage]['p50']:.2f} / {stages[stage]['p99']:.2f}" for stage in ("backbone", "head", "total")),
        ]
        cells += [f"{baseline / total:.2f}x", f"{total / steps:.2f}"]
        if bundle is None:
            cells += ["-", "-", "-"]
        else:
            metrics = bundle["parity"]["metrics"]
            cells.append(f"{bundle['size_bytes'] / 1e6:.1f}")
            cells += [f"{metrics['min_feature_cosine']:.5f}", f"{metrics['action_max_error']:.2g}"]
        lines.append(f"| {' | '.join(cells)} |")
    machine, floor, conditions = latency["machine"], latency["noise_floor"], latency["conditions"]
    parity, training = result["bundles"]["int8"]["parity"], result["training"]
    caption = (
        f"Measured by `make pipeline` on {machine['cpu']}, {machine['usable_cores']} cores "
        f"({', '.join(machine['cpu_flags'])}), {conditions['iterations']} calls each, interleaved in one "
        f"process{_scheduling(conditions)}; "
        f"the same bundle against itself: {floor['value']:.2f}x. "
        f"Cosine and action error (1.0 = 20 mm or 0.05 rad) are the worst of {parity['num_steps']} "
        f"steps of demonstrations with carried state. No success rate is claimed: {training['seconds']:.0f} s "
        f"of training brought its loss from {training['first_loss']:.3f} to {training['last_loss']:.3f}. "
        f"Every figure: [{Path(link).name}]({link})."
    )
    return "\n".join([BEGIN, *lines, "", caption, END])


def _scheduling(conditions: dict[str, Any]) -> str:
    return "" if conditions["realtime_priority"] is None else " under realtime scheduling"


def main() -> int:
    readme = ROOT / "README.md"
    text = readme.read_text()
    table = render(json.loads(RESULT.read_text()), RESULT.relative_to(ROOT).as_posix())
    start, stop = text.index(BEGIN), text.index(END) + len(END)
    readme.write_text(text[:start] + table + text[stop:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
