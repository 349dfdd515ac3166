"""Write the measured tables of README and policies page from the committed results; a test checks that they agree."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rfedge.benchmarks.success_report import loop_name

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SWEEP = RESULTS / "sweep_playtable-d_cpu_202611.json"
LONG_RUN = RESULTS / "success_playtable-d_cpu_202611.json"
ABLATIONS = RESULTS / "ablations_playtable-d_cpu_202611.json"
README, PAGE = ROOT / "README.md", ROOT / "docs" / "results" / "playtable_policies.md"


def render() -> list[tuple[Path, str]]:
    """Return (file, everything from one of its markers to the other, with them)."""
    sweep, long_run, ablations = map(_read, (SWEEP, LONG_RUN, ABLATIONS))
    return [
        (README, _marked("measured table", sweep_table(sweep), long_run_sentence(long_run))),
        (PAGE, _marked("200 chains", long_run_table(long_run))),
        (PAGE, _marked("ablations", ablations_table(ablations))),
    ]


def _marked(name: str, *texts: str) -> str:
    return "\n".join([f"<!-- {name}: begin -->", *texts, f"<!-- {name}: end -->"])


def sweep_table(record: dict[str, Any]) -> str:
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
    lines = _head(columns)
    for row in success["rows"]:
        policy, times = policies[row["policy"]], joined[row["name"]]
        chains, tasks, paired = row["chains"], row["single_tasks"], row["paired"]
        call, step = times["per_call_ms"], times["per_control_step_ms"]
        cells = (
            _policy(policy),
            row["precision"],
            loop_name(row["kind"], row["ensemble"]),
            str(row["execute_steps"]),
            interval(chains["average_length"]),
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
        f"Every figure: {_link(SWEEP)}."
    )
    return "\n".join([*lines, "", caption])


def long_run_table(record: dict[str, Any]) -> str:
    """Return the Markdown table of the report of a `rfedge bench success`, with the columns that CALVIN's results have."""
    policies = {policy["label"]: policy for policy in record["policies"]}
    rates = [f"{number} of 5" for number in range(1, 6)]
    lines = _head(("policy", "precision", "loop", "steps a call", *rates, "tasks in a row", "of the first row"))
    for row in record["rows"]:
        chains, paired = row["chains"], row["paired"]
        cells = (
            _policy(policies[row["policy"]]),
            row["precision"],
            loop_name(row["kind"], row["ensemble"]),
            str(row["execute_steps"]),
            *(f"{chains['success_rates'][str(number)]['value']:.0%}" for number in range(1, 6)),
            interval(chains["average_length"]),
            "-" if paired is None else share(paired["average_length_share"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def long_run_sentence(record: dict[str, Any]) -> str:
    """Return its averages in words."""
    done = (
        f"{interval(row['chains']['average_length'])} ({loop_name(row['kind'], row['ensemble'])}, "
        f"{row['execute_steps']} {'step' if row['execute_steps'] == 1 else 'steps'} a call)"
        for row in record["rows"]
    )
    number = record["conditions"]["num_chains"]
    return f"The int8 policies as shipped, over {number} chains, in a row: {', '.join(done)}; {_link(LONG_RUN)}."


def ablations_table(record: dict[str, Any]) -> str:
    """Return the Markdown table of the report of `python -m rfedge.benchmarks.ablations`."""
    lines = _head(("variant", "what is changed", "training steps", "held-out loss", "single tasks", "of the first row"))
    for variant, row in zip(record["variants"], record["success"]["rows"], strict=True):
        paired = row["paired"]
        cells = (
            variant["name"],
            variant["change"],
            str(variant["steps"]),
            f"{variant['held_out_loss']:.4f}",
            share(row["single_tasks"]["success"]),
            "-" if paired is None else share(paired["single_task_share"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _head(columns: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]


def _policy(policy: dict[str, Any]) -> str:
    return "jump-step" if policy["frame_stride"] > 1 else "closed-loop"


def share(value: dict[str, float]) -> str:
    """Return a share and its interval in per cent."""
    return f"{value['value']:.0%} [{value['low']:.0%}, {value['high']:.0%}]"


def _link(path: Path) -> str:
    return f"[{path.name}]({path.relative_to(ROOT).as_posix()})"


def _read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def interval(value: dict[str, float]) -> str:
    """Return a mean and its interval."""
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def main() -> int:
    for path, part in render():
        text, (first, *_, last) = path.read_text(), part.splitlines()
        path.write_text(text[: text.index(first)] + part + text[text.index(last) + len(last) :])
    return 0


if __name__ == "__main__":
    sys.exit(main())
