"""The shipped jump-step int8 policy at work: a film of each task, how often it succeeded and how long it took to decide.

Every command is printed before it runs. Exit 0 means that the policy completed at least half of what it was asked.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from pipeline import may_be_realtime, run

from rfedge.policies import JUMP_STEP

TASKS = (
    "open_drawer",
    "close_drawer",
    "move_slider_left",
    "turn_on_lightbulb",
    "turn_on_led",
    "push_blue_block_left",
    "lift_red_block_table",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo"))
    parser.add_argument("--episodes", type=int, default=3, help="of each task, with seeds 0, 1, ...")
    options = parser.parse_args()
    started = time.monotonic()
    root: Path = options.output
    root.mkdir(parents=True, exist_ok=True)
    reports = {
        task: run(task, *("run", JUMP_STEP, "--task", task, "--episodes", options.episodes, "--video", root / f"{task}.gif"))
        for task in TASKS
    }
    latency = run(
        "latency of one policy call",
        *("bench", "latency", JUMP_STEP, "--iterations", 200, "--output", root / "latency.json"),
        *(("--realtime-priority", 50) if may_be_realtime() else ()),
    )
    return summarise(reports, latency, root, time.monotonic() - started)


def summarise(reports: dict[str, dict[str, Any]], latency: dict[str, Any], root: Path, seconds: float) -> int:
    """Print what was reached, write it to `root`/results.json and return the exit status."""
    print("\n=== summary")
    num_done = num_all = 0
    for task, report in reports.items():
        episodes = report["episodes"]
        done = [episode for episode in episodes if episode["success"]]
        num_done, num_all = num_done + len(done), num_all + len(episodes)
        taken = ", ".join(f"{episode['num_steps'] / report['control_hz']:.1f} s" for episode in done)
        print(f"{task:<24} {len(done)} of {len(episodes)}{f'  in {taken}' if taken else ''}  {root / f'{task}.gif'}")
    call = latency["variants"][0]["per_call_ms"]["total"]
    steps = reports[TASKS[0]]["execute_steps"]
    print(
        f"{num_done} of {num_all} done; a call takes {call['p50']:.1f} ms (p99 {call['p99']:.1f}) "
        f"and serves {steps} control steps: {call['p50'] / steps:.1f} ms a step"
    )
    (root / "results.json").write_text(json.dumps({"seconds": round(seconds), "runs": reports, "latency": latency}) + "\n")
    print(f"all in {seconds / 60:.1f} minutes; every figure: {root / 'results.json'}")
    return 0 if 2 * num_done >= num_all else 1


if __name__ == "__main__":
    sys.exit(main())
