"""Make the shipped policies from nothing, stage by stage: demonstrations, seeing, acting, takeovers, acting again, int8.

    MUJOCO_GL=egl python tools/make_policies.py --output FOLDER

A stage that is done is not done again, and each one goes on where it was stopped. `stages/stages.jsonl` gets a line for each
of them: command, when it began, how long it took. `--factor 0.1` does a tenth of everything, to try it out. What came of the
stages, as they were run for the shipped policies: docs/results/playtable_policies.md.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from rfedge.benchmarks.commands import run_rfedge
from rfedge.journal import open_journal

RECIPE_VERSION: Final = 1
ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "results" / "playtable_policies.md"
BEGIN, END = "<!-- stages: begin -->", "<!-- stages: end -->"
_M2, _M4, _M5 = (f"--data {name} --cache caches/{name}" for name in ("m2", "m4", "m5"))
_ACT: Final = "--vision-tokens --mixed-precision bf16 --batch-size 16 --validation-fraction 0.05"


@dataclass(frozen=True, slots=True)
class Stage:
    """One command of `rfedge`, run in the output folder.

    Attributes:
        what: it is for.
        minutes: that it took for the shipped policies, on two cores without a GPU.
    """

    what: str
    minutes: int
    command: str

    @property
    def output(self) -> str:
        """The folder that it writes, which names it."""
        words = self.command.split()
        return words[words.index("--output") + 1]


STAGES: Final = (
    Stage("chains of tasks", 5, "demos --output c1 --tasks all --episodes-per-task 5 --chain-length 5 --seed 1 --workers 2"),
    Stage(
        "chains with pushes",
        5,
        "demos --output c2 --tasks all --episodes-per-task 5 --chain-length 5 --seed 2 --workers 2 --action-noise 0.3",
    ),
    Stage(
        "chains with pushes",
        7,
        "demos --output c3 --tasks all --episodes-per-task 8 --chain-length 5 --seed 3 --workers 2 --action-noise 0.3",
    ),
    Stage(
        "single tasks with pushes",
        5,
        "demos --output s1 --tasks all --episodes-per-task 30 --seed 11 --workers 2 --action-noise 0.3",
    ),
    Stage(
        "single tasks with pushes",
        4,
        "demos --output s2 --tasks all --episodes-per-task 30 --seed 12 --workers 2 --action-noise 0.3",
    ),
    Stage("all in one", 2, "demos merge c1 c2 s1 c3 s2 --output m2"),
    Stage(
        "seeing, by words",
        55,
        f"pretrain --config playtable-small {_M2} --output pt2 --minutes 55 --mixed-precision bf16 --learning-rate 7e-4 "
        "--pointing-weight 0",
    ),
    Stage(
        "seeing, by words and pointing",
        30,
        f"pretrain --config pt2/checkpoint {_M2} --output pt3 --minutes 30 --mixed-precision bf16 --learning-rate 7e-4",
    ),
    Stage(
        "acting, jump-step",
        26,
        f"train --config pt3/checkpoint {_M2} --output js --frame-stride 4 --chunk-size 4 --proprioception {_ACT} "
        "--minutes 13",
    ),
    Stage("compiling it", 1, "export js/checkpoint --precision int8 --data m2 --output js-int8 --parity-steps 128"),
    Stage(
        "the expert takes over from it",
        7,
        "demos --output g3 --tasks all --episodes-per-task 6 --chain-length 5 --seed 31 --workers 2 --policy js-int8 "
        "--mode open-loop --execute-steps 4 --takeover-steps 100 --max-steps 128",
    ),
    Stage("all in one", 2, "demos merge m2 g3 --output m4"),
    Stage(
        "acting, jump-step",
        40,
        f"train --config js/checkpoint {_M4} --output js2 --frame-stride 4 --chunk-size 4 {_ACT} --seed 2 --minutes 31",
    ),
    Stage(
        "acting, closed loop",
        18,
        f"train --config js2/checkpoint {_M4} --output cl2 --frame-stride 1 --chunk-size 4 {_ACT} --seed 3 --minutes 18",
    ),
    Stage("compiling", 1, "export js2/checkpoint --precision int8 --data m4 --output jump-step-int8 --parity-steps 128"),
    Stage("compiling it", 1, "export cl2/checkpoint --precision int8 --data m4 --output cl2-int8 --parity-steps 128"),
    Stage(
        "the expert takes over from it",
        8,
        "demos --output g5 --tasks all --episodes-per-task 4 --chain-length 5 --seed 43 --workers 2 --policy cl2-int8 "
        "--mode closed-loop --execute-steps 1 --takeover-steps 100 --max-steps 128",
    ),
    Stage("all in one", 2, "demos merge m2 g3 g5 --output m5"),
    Stage(
        "acting, closed loop",
        43,
        f"train --config cl2/checkpoint {_M5} --output cl3 --frame-stride 1 --chunk-size 4 {_ACT} --seed 4 --minutes 36",
    ),
    Stage("compiling", 1, "export cl3/checkpoint --precision int8 --data m5 --output closed-loop-int8 --parity-steps 128"),
)


def render() -> str:
    """Return the stages as a Markdown table."""
    lines = ["| stage | command | minutes |", "|---|---|---|"]
    lines += [f"| {stage.what} | `rfedge {stage.command}` | {stage.minutes} |" for stage in STAGES]
    return "\n".join([BEGIN, *lines, END])


def commands(stage: Stage, factor: float, tasks: str) -> list[str]:
    """Return the words of a stage's command with its minutes and episodes scaled, and its tasks."""
    return list(_scaled(stage.command.split(), factor, tasks))


def _scaled(words: list[str], factor: float, tasks: str) -> Iterator[str]:
    before = ""
    for word in words:
        if before == "--minutes":
            yield f"{float(word) * factor:g}"
        elif before == "--episodes-per-task":
            yield str(max(1, round(int(word) * factor)))
        elif before == "--tasks":
            yield tasks
        else:
            yield word
        before = word


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--factor", type=float, default=1.0, help="of all minutes and numbers of episodes")
    parser.add_argument("--tasks", default="all")
    parser.add_argument("--until", choices=[stage.output for stage in STAGES], help="last folder to make")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("--page", action="store_true", help="write the table of stages into the documentation instead")
    options = parser.parse_args()
    if options.page:
        text = PAGE.read_text()
        PAGE.write_text(text[: text.index(BEGIN)] + render() + text[text.index(END) + len(END) :])
        return 0
    if options.output is None:
        parser.error("--output FOLDER is needed")
    names = [stage.output for stage in STAGES]
    chosen = STAGES[: names.index(options.until) + 1] if options.until else STAGES
    if options.dry_run:
        for stage in chosen:
            print("rfedge", shlex.join(commands(stage, options.factor, options.tasks)), f" # {stage.what}")
        return 0
    arguments = {"recipe_version": RECIPE_VERSION, "factor": options.factor, "tasks": options.tasks}
    with open_journal(options.output / "stages" / "stages.jsonl", arguments) as journal:
        done = {record["output"] for record in journal.records}
        for number, stage in enumerate(chosen, 1):
            words = commands(stage, options.factor, options.tasks)
            if stage.output in done:
                print(f"=== {number}/{len(chosen)} {stage.output}: {stage.what}, done before", flush=True)
                continue
            print(f"=== {number}/{len(chosen)} {stage.output}: {stage.what}\n$ rfedge {shlex.join(words)}", flush=True)
            began, begun_s = datetime.now(timezone.utc), time.monotonic()
            try:
                run_rfedge(words, folder=options.output)
            except subprocess.CalledProcessError as error:
                status = error.returncode
                print(f"make_policies: {stage.output} ended with status {status}; the next run goes on", file=sys.stderr)
                return status
            seconds = round(time.monotonic() - begun_s, 1)
            began_at = began.isoformat(timespec="seconds")
            record = {"output": stage.output, "command": words, "began_at": began_at, "seconds": seconds}
            journal.append(record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
