"""Make the shipped policies from nothing, stage by stage: demonstrations, seeing, acting, int8.

    MUJOCO_GL=egl python tools/make_policies.py --output FOLDER

A stage that is done is not done again, and each one goes on where it was stopped. `stages/stages.jsonl` gets a line for each
of them: command, when it began, how long it took. `--factor 0.1` does a tenth of everything, to try it out. Results of the
stages, as they were run for the shipped policies: docs/results/playtable_policies.md. One stage renders CALVIN's looks and
needs an installed calvin_env.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import subprocess
import sys
import time
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


@dataclass(frozen=True, slots=True)
class Stage:
    """One command of `rfedge`, or one script of `tools/`, run in the output folder."""

    what: str
    minutes: int  # that it took for the shipped policies, on two cores without a GPU
    command: str

    @property
    def output(self) -> str:
        """The folder that it writes, which names it."""
        words = self.command.split()
        return words[words.index("--output") + 1]

    @property
    def program(self) -> str:
        return "python" if self.command.startswith("tools/") else "rfedge"


_RECIPE: Final = json.loads((ROOT / "tools" / "policy_stages.json").read_text())
STAGES: Final = tuple(
    Stage(stage["what"], stage["minutes"], stage["command"].format(**_RECIPE["parts"])) for stage in _RECIPE["stages"]
)


def render() -> str:
    lines = ["| stage | command | minutes |", "|---|---|---|"]
    lines += [f"| {stage.what} | `{stage.program} {stage.command}` | {stage.minutes} |" for stage in STAGES]
    return "\n".join([BEGIN, *lines, END])


def commands(stage: Stage, factor: float, tasks: str) -> list[str]:
    """Return the words of a stage's command with its minutes and episodes scaled, and its tasks."""
    words = stage.command.split()
    for place, (flag, value) in enumerate(itertools.pairwise(tuple(words)), start=1):
        if flag == "--minutes":
            words[place] = f"{float(value) * factor:g}"
        elif flag == "--episodes-per-task":
            words[place] = str(max(1, round(int(value) * factor)))
        elif flag == "--tasks" and tasks != "all":
            words[place] = tasks
    return words


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
            print(f"=== {number}/{len(chosen)} {stage.output}: {stage.what}")
            print(f"$ {stage.program} {shlex.join(words)}", flush=True)
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
            times = {"began_at": began.isoformat(timespec="seconds"), "seconds": round(time.monotonic() - begun_s, 1)}
            journal.append({"output": stage.output, "command": words, **times})
    return 0


if __name__ == "__main__":
    sys.exit(main())
