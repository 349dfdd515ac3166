"""The main job, end to end, with the commands a user would type: demonstrations -> train -> export -> run -> latency.

Every command is printed before it runs. A second run goes on where the first one stopped: finished demonstrations and
training are kept, bundles are made again. Exit 0 means that every figure below was reached on this machine.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rfedge.benchmarks.latency.commands import run_rfedge

TASKS = (
    "open_drawer",
    "close_drawer",
    "move_slider_left",
    "move_slider_right",
    "turn_on_lightbulb",
    "turn_on_led",
    "lift_red_block_table",
)
CHUNK_SIZE = 4
PRECISIONS = ("fp32", "int8")


def may_be_realtime() -> bool:
    """Whether this user may run before ordinary programs; where not, the latencies are those of a shared machine."""
    from rfedge.errors import BackendUnavailableError
    from rfedge.runtimes.control.scheduling import realtime_priority

    try:
        with realtime_priority(50):
            return True
    except BackendUnavailableError:
        return False


def run(step: str, *arguments: object) -> dict[str, Any]:
    """Run one `rfedge` command, its tables and bars on the screen, and return the JSON document it prints last."""
    command = ["rfedge", *(str(argument) for argument in arguments)]
    print(f"\n=== {step}\n$ {shlex.join(command)}", flush=True)
    started = time.monotonic()
    try:
        document = run_rfedge(command[1:])
    except subprocess.CalledProcessError as error:
        print(f"pipeline: {step} ended with status {error.returncode}", file=sys.stderr)
        sys.exit(error.returncode)
    print(f"({time.monotonic() - started:.0f} s)", flush=True)
    return document


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("pipeline"))
    parser.add_argument("--episodes-per-task", type=int, default=20)
    parser.add_argument("--train-minutes", type=float, default=5.0)
    options = parser.parse_args()
    started = time.monotonic()
    root: Path = options.output
    data, training = root / "demonstrations", root / "training"
    checkpoint = training / "checkpoint"

    demos = run(
        "demonstrations by scripted experts, in CALVIN's format",
        *("demos", "--output", data, "--tasks", ",".join(TASKS), "--episodes-per-task", options.episodes_per_task),
        *("--workers", 2, "--seed", 0),
    )
    trained = run(
        "training from nothing",
        *("train", "--config", "playtable-small", "--data", data, "--output", training, "--chunk-size", CHUNK_SIZE),
        *("--minutes", options.train_minutes, "--batch-size", 4, "--seed", 0),
    )
    manifests = {
        precision: run(
            f"export {precision}, proved against PyTorch",
            *("export", checkpoint, "--precision", precision, "--data", data, "--output", root / f"bundle-{precision}"),
            *("--parity-steps", 256, "--overwrite"),
        )
        for precision in PRECISIONS
    }
    episodes = {
        mode: run(
            f"one episode, {mode}",
            *("run", root / "bundle-int8", "--mode", mode, "--execute-steps", steps, "--task", "open_drawer"),
            *("--seed", 0, "--video", root / f"{mode}.gif"),
        )
        for mode, steps in (("closed-loop", 1), ("open-loop", CHUNK_SIZE))
    }
    latency = run(
        "latency, all variants interleaved in one process",
        *("bench", "latency", root / "bundle-int8", root / "bundle-fp32", "--checkpoint", checkpoint),
        # Calls fall into a fast and a slow group on two cores; 400 of them bring the noise floor near 1.
        *("--iterations", 400, "--execute-steps", CHUNK_SIZE, "--output", root / "latency.json", "--assert-faster"),
        *(("--realtime-priority", 50) if may_be_realtime() else ()),
    )
    return summarise(demos, trained, manifests, episodes, latency, root, time.monotonic() - started)


def summarise(
    demos: dict[str, Any],
    trained: dict[str, Any],
    manifests: dict[str, dict[str, Any]],
    episodes: dict[str, dict[str, Any]],
    latency: dict[str, Any],
    root: Path,
    seconds: float,
) -> int:
    print("\n=== summary")
    num_episodes, num_frames = (sum(task[key] for task in demos["tasks"]) for key in ("episodes", "frames"))
    print(f"demonstrations: {num_episodes} episodes of {len(demos['tasks'])} tasks, {num_frames} frames")
    first, last = trained["first_loss"], trained["last_loss"]
    halved = last <= first / 2
    print(f"training loss: {first:.4f} -> {last:.4f} ({'at least halved' if halved else 'NOT halved'})")
    for precision, manifest in manifests.items():
        metrics = manifest["parity"]["metrics"]
        print(
            f"parity {precision} over {manifest['parity']['num_steps']} steps: feature cosine >= "
            f"{metrics['min_feature_cosine']:.6f}, action error <= {metrics['action_max_error']:.2g}, "
            f"gripper flips {metrics['gripper_flip_rate']:.1%}, hidden drift <= {metrics['hidden_max_drift']:.2g}"
        )
    for mode, report in episodes.items():
        episode = report["episodes"][0]
        outcome = "success" if episode["success"] else "no success (minutes of training are for the loss, not for skill)"
        print(
            f"{mode}: {episode['num_steps']} steps, {episode['num_inferences']} inferences, {outcome}, "
            f"video {root / f'{mode}.gif'}"
        )
    medians = {variant["name"]: variant["per_call_ms"]["total"]["p50"] for variant in latency["variants"]}
    print("median ms per policy call: " + ", ".join(f"{name} {value:.2f}" for name, value in medians.items()))
    results = {"seconds": round(seconds), "demonstrations": demos, "training": trained, "bundles": manifests}
    results |= {"episodes": episodes, "latency": latency}
    (root / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"all in {seconds / 60:.1f} minutes; every figure: {root / 'results.json'}")
    return 0 if halved else 1


if __name__ == "__main__":
    sys.exit(main())
