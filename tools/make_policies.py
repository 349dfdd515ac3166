"""Make the shipped policies from nothing, stage by stage: demonstrations, seeing, acting, int8.

    MUJOCO_GL=egl python tools/make_policies.py --output FOLDER

A stage that is done is not done again, and each one goes on where it was stopped. `stages/stages.jsonl` gets a line for each
of them: command, when it began, how long it took. `--factor 0.1` does a tenth of everything, to try it out. Results of the
stages, as they were run for the shipped policies: docs/results/playtable_policies.md. One stage renders CALVIN's looks and
needs an installed calvin_env.
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

from rfedge.benchmarks.latency.commands import run_rfedge
from rfedge.io.journal import open_journal

RECIPE_VERSION: Final = 4
ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "results" / "playtable_policies.md"
BEGIN, END = "<!-- stages: begin -->", "<!-- stages: end -->"
_M1, _M2, _M3, _M4, _M5, _M6, _M7, _M8, _M9, _M10 = (f"--data m{number} --cache caches/m{number}" for number in range(1, 11))
_PUSHED: Final = "--action-noise 0.3 --workers 2"
_SEE: Final = "--language-weight 0 --light 0.15 --mixed-precision bf16"
_ACT: Final = "--vision-tokens --mixed-precision bf16 --batch-size 16 --validation-fraction 0.05 --instructions grammar"
_JUMP: Final = "--frame-stride 4 --chunk-size 8 --time-keeping carry --proprioception"
_AT_SPOTS: Final = "--tasks all --chain-length 5 --at-spots"
_DEMONSTRATIONS: Final = "demo-play demo-calvin chain-play chain-calvin"
_TAKEOVERS: Final = "--takeover-steps 120 --max-steps 180 --chain-length 5 --at-spots"
_AGAIN: Final = f"--learning-rate 3e-4 --task-weight 0.05 {_JUMP} {_ACT}"
_PUSHES: Final = ",".join(f"push_{colour}_block_{side}" for colour in ("red", "blue", "pink") for side in ("right", "left"))
# Blocks, where most went wrong.
_BLOCKS: Final = f"{_PUSHES},stack_block,unstack_block,place_in_slider,lift_blue_block_drawer," + ",".join(
    f"lift_{colour}_block_{place}" for colour in ("red", "blue", "pink") for place in ("slider", "table")
)


@dataclass(frozen=True, slots=True)
class Stage:
    """One command of `rfedge`, or one script of `tools/`, run in the output folder.

    Attributes:
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

    @property
    def program(self) -> str:
        """What a user types before the command."""
        return "python" if self.command.startswith("tools/") else "rfedge"


STAGES: Final = (
    Stage("single tasks with pushes", 8, f"demos --output s1 --tasks all --episodes-per-task 30 --seed 11 {_PUSHED}"),
    Stage(
        "chains with pushes", 7, f"demos --output c1 --tasks all --episodes-per-task 5 --chain-length 5 --seed 2 {_PUSHED}"
    ),
    Stage("all in one", 1, "demos merge s1 c1 --output m1"),
    Stage(
        "seeing, by pointing",
        23,
        f"pretrain --config playtable-small {_M1} --output eyes1 --minutes 23 --learning-rate 7e-4 {_SEE}",
    ),
    Stage(
        "single tasks in CALVIN's looks",
        17,
        f"demos --output s2 --tasks all --episodes-per-task 16 --seed 12 --looks calvin {_PUSHED}",
    ),
    Stage("all in one", 1, "demos merge s1 c1 s2 --output m2"),
    Stage(
        "seeing both looks",
        20,
        f"pretrain --config eyes1/checkpoint {_M2} --output eyes2 --minutes 20 --learning-rate 6e-4 {_SEE}",
    ),
    Stage(
        "acting, jump-step",
        46,
        f"train --config eyes2/checkpoint {_M2} --output js --minutes 44 --vocab-size 2048 {_JUMP} {_ACT}",
    ),
    Stage("a new table in every picture", 5, "demos snapshots --output snap-play --num 16000 --seed 100"),
    Stage("in random looks", 8, "demos snapshots --output snap-random --num 24000 --looks random --seed 101"),
    Stage("in CALVIN's looks", 18, "demos snapshots --output snap-calvin --num 20000 --looks calvin --seed 102"),
    Stage("all in one", 1, "demos merge snap-play snap-random --output m3"),
    Stage(
        "seeing new tables",
        14,
        f"pretrain --config js/checkpoint {_M3} --output eyes3 --minutes 14 --learning-rate 7e-4 {_SEE}",
    ),
    Stage("all in one", 1, "demos merge snap-play snap-random snap-calvin --output m4"),
    Stage(
        "seeing them in all looks",
        22,
        f"pretrain --config eyes3/checkpoint {_M4} --output eyes4 --minutes 22 --learning-rate 7e-4 {_SEE}",
    ),
    Stage("single tasks", 14, f"demos --output demo-play --tasks all --episodes-per-task 24 --seed 201 {_PUSHED}"),
    Stage(
        "single tasks in CALVIN's looks",
        16,
        f"demos --output demo-calvin --tasks all --episodes-per-task 12 --seed 203 --looks calvin {_PUSHED}",
    ),
    Stage("chains", 18, f"demos --output chain-play --episodes-per-task 5 --seed 211 {_AT_SPOTS} {_PUSHED}"),
    Stage(
        "chains in CALVIN's looks",
        28,
        f"demos --output chain-calvin --episodes-per-task 3 --seed 213 --looks calvin {_AT_SPOTS} {_PUSHED}",
    ),
    Stage("all in one", 1, "demos merge snap-play snap-random snap-calvin demo-play demo-calvin --output m5"),
    Stage(
        "seeing them in use",
        15,
        f"pretrain --config eyes4/checkpoint {_M5} --output eyes5 --minutes 15 --learning-rate 6e-4 {_SEE}",
    ),
    Stage("all in one", 1, "demos merge demo-play demo-calvin chain-play --output m6"),
    Stage(
        "acting, jump-step",
        26,
        f"train --config eyes5/checkpoint {_M6} --output js2 --minutes 26 --task-weight 0.05 {_JUMP} {_ACT}",
    ),
    Stage("a driver", 2, "export js2/checkpoint --precision int8 --data demo-play --output driver-1 --force"),
    Stage(
        "experts take over from it",
        15,
        f"demos --output take-1 --episodes-per-task 3 --seed 401 --policy driver-1 --takeover-steps 100 --max-steps 150 "
        f"{_AT_SPOTS}",
    ),
    Stage("all in one", 1, f"demos merge {_DEMONSTRATIONS} take-1 --output m7"),
    Stage(
        "learning from it",
        14,
        f"train --config js2/checkpoint {_M7} --output js3 --minutes 14 --learning-rate 2.2e-4 --task-weight 0.05 "
        f"{_JUMP} {_ACT}",
    ),
    Stage(
        "experts take over again",
        16,
        f"demos --output take-2 --episodes-per-task 8 --seed 501 --policy driver-1 --takeover-steps 120 --max-steps 180 "
        f"{_AT_SPOTS}",
    ),
    Stage("all in one", 1, f"demos merge {_DEMONSTRATIONS} take-1 take-2 --output m8"),
    Stage(
        "learning from all of it",
        21,
        f"train --config js3/checkpoint {_M8} --output js4 --minutes 21 --learning-rate 2e-4 --task-weight 0.05 "
        f"{_JUMP} {_ACT}",
    ),
    Stage("a better driver", 2, "export js4/checkpoint --precision int8 --data demo-play --output driver-2"),
    Stage("pushes", 4, f"demos --output demo-push --tasks {_PUSHES} --episodes-per-task 40 --seed 801 {_PUSHED}"),
    Stage(
        "pushes in CALVIN's looks",
        4,
        f"demos --output push-calvin --tasks {_PUSHES} --episodes-per-task 25 --seed 803 --looks calvin {_PUSHED}",
    ),
    Stage(
        "experts take over",
        7,
        f"demos --output take-3 --episodes-per-task 6 --seed 701 --policy driver-2 {_TAKEOVERS} --tasks all",
    ),
    Stage(
        "experts take over blocks",
        8,
        f"demos --output take-4 --episodes-per-task 12 --seed 702 --policy driver-2 {_TAKEOVERS} --tasks {_BLOCKS}",
    ),
    Stage(
        "experts take over",
        16,
        f"demos --output take-5 --episodes-per-task 8 --seed 802 --policy driver-2 {_TAKEOVERS} --tasks all",
    ),
    Stage(
        "experts take over blocks in CALVIN's looks",
        22,
        f"demos --output take-6 --episodes-per-task 7 --seed 804 --looks calvin --policy driver-2 {_TAKEOVERS} "
        f"--tasks {_BLOCKS}",
    ),
    Stage(
        "all in one",
        1,
        f"demos merge {_DEMONSTRATIONS} demo-push push-calvin take-1 take-2 take-3 take-4 take-5 take-6 --output m9",
    ),
    Stage("learning from all of it", 24, f"train --config js4/checkpoint {_M9} --output js5 --minutes 24 {_AGAIN}"),
    Stage(
        "acting, closed loop",
        12,
        f"train --config js5/checkpoint {_M9} --output cl --frame-stride 1 --chunk-size 8 --minutes 12 "
        f"--learning-rate 2e-4 --task-weight 0.05 --time-keeping carry --proprioception {_ACT}",
    ),
    Stage("a better driver", 2, "export js5/checkpoint --precision int8 --data demo-play --output driver-3"),
    Stage(
        "experts take over",
        12,
        f"demos --output take-7 --episodes-per-task 4 --seed 912 --policy driver-3 {_TAKEOVERS} --tasks all",
    ),
    Stage(
        "experts take over in CALVIN's looks",
        12,
        f"demos --output take-8 --episodes-per-task 2 --seed 911 --looks calvin --policy driver-3 {_TAKEOVERS} --tasks all",
    ),
    Stage("all in one", 1, "demos merge m9 take-7 take-8 --output m10"),
    Stage("learning from it", 22, f"train --config js5/checkpoint {_M10} --output js6 --minutes 22 {_AGAIN}"),
    Stage("the mean of both rounds", 1, "tools/mean_weights.py js5/checkpoint js6/checkpoint --output jm1"),
    Stage("compiling", 2, "export jm1/checkpoint --precision int8 --data demo-play --output jump-step-int8"),
    Stage("compiling", 2, "export cl/checkpoint --precision int8 --data demo-play --output closed-loop-int8"),
)


def render() -> str:
    """Return the stages as a Markdown table."""
    lines = ["| stage | command | minutes |", "|---|---|---|"]
    lines += [f"| {stage.what} | `{stage.program} {stage.command}` | {stage.minutes} |" for stage in STAGES]
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
            yield word if tasks == "all" else tasks
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
            print(stage.program, shlex.join(commands(stage, options.factor, options.tasks)), f" # {stage.what}")
        return 0
    arguments = {"recipe_version": RECIPE_VERSION, "factor": options.factor, "tasks": options.tasks}
    with open_journal(options.output / "stages" / "stages.jsonl", arguments) as journal:
        done = {record["output"] for record in journal.records}
        for number, stage in enumerate(chosen, 1):
            words = commands(stage, options.factor, options.tasks)
            if stage.output in done:
                print(f"=== {number}/{len(chosen)} {stage.output}: {stage.what}, done before", flush=True)
                continue
            print(
                f"=== {number}/{len(chosen)} {stage.output}: {stage.what}\n$ {stage.program} {shlex.join(words)}", flush=True
            )
            began, begun_s = datetime.now(timezone.utc), time.monotonic()
            try:
                if stage.program == "python":
                    subprocess.run([sys.executable, ROOT / words[0], *words[1:]], cwd=options.output, check=True)
                else:
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
