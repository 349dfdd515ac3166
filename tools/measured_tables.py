"""Write the README's measured table from the committed result; a test checks that the two agree."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rfedge.benchmarks.success_report import loop_name

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "sweep_playtable-d_cpu_202611.json"
BEGIN, END = "<!-- measured table: begin -->", "<!-- measured table: end -->"


def render(record: dict[str, Any], link: str) -> str:
    """Return the Markdown table and its caption for the report of a `rfedge bench sweep`."""
    success = record["success"]
    policies = {policy["label"]: policy for policy in success["policies"]}
    joined = {row["row"]: row for row in record["rows"]}
    columns = (
        "policy",
        "precision",
        "loop",
        "steps a call",
        "tasks in a row, of 5",
        "of the first row",
        "single tasks",
        "call p50 / p99 ms",
        "ms a control step",
        "MB",
    )
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in success["rows"]:
        policy, times = policies[row["policy"]], joined[row["name"]]
        chains, tasks, paired = row["chains"], row["single_tasks"], row["paired"]
        call, step = times["per_call_ms"], times["per_control_step_ms"]
        cells = (
            "jump-step" if policy["frame_stride"] > 1 else "closed-loop",
            row["precision"],
            loop_name(row["kind"], row["ensemble"]),
            str(row["execute_steps"]),
            _interval(chains["average_length"]),
            "-" if paired is None else f"{paired['average_length_share']['value']:.0%}",
            f"{tasks['success']['value']:.0%}" if tasks else "-",
            f"{call['p50']:.1f} / {call['p99']:.1f}",
            f"{step['p50']:.2f}",
            f"{policy['size_bytes'] / 1e6:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    conditions, machine = success["conditions"], success["machine"]
    starts = f" {conditions['starts_per_task']} starts of each of 34 tasks," if conditions["starts_per_task"] else ""
    caption = (
        "`rfedge bench sweep` of the shipped policies on PlayTable, scene D: "
        f"{conditions['num_chains']} of CALVIN's chains,{starts} the same for every row, {conditions['max_steps']} control "
        f"steps a task; intervals of 95 %. Latency alone on {machine['cpu']}, {machine['usable_cores']} cores. "
        f"Every figure: [{Path(link).name}]({link})."
    )
    return "\n".join([BEGIN, *lines, "", caption, END])


def _interval(value: dict[str, float]) -> str:
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def main() -> int:
    readme = ROOT / "README.md"
    text = readme.read_text()
    table = render(json.loads(RESULT.read_text()), RESULT.relative_to(ROOT).as_posix())
    start, stop = text.index(BEGIN), text.index(END) + len(END)
    readme.write_text(text[:start] + table + text[stop:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
