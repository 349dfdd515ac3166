"""`rfedge bench chains`: CALVIN's chains of five tasks, and how far the scripted experts get in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfedge.runtimes.control.limits import MAX_STEPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rfedge.benchmarks.success.chain_report import ChainReport
    from rfedge.envs.chains import Chain

__all__ = ["chains"]


def chains(
    num: Annotated[
        int, typer.Option(min=1, help="The first so many of CALVIN's 1000 chains; more draws a larger set.")
    ] = 1000,
    expert: Annotated[bool, typer.Option("--expert", help="Let the scripted experts do them.")] = False,
    env: Annotated[str, typer.Option(help="Environment: playtable or calvin.")] = "playtable",
    scene: Annotated[str, typer.Option(help="CALVIN scene; the benchmark is scene D.")] = "D",
    language: Annotated[str, typer.Option(help="Instructions that are recorded: evaluation or enriched.")] = "evaluation",
    max_steps: Annotated[int, typer.Option(min=1, help="Control steps for each task.")] = MAX_STEPS,
    seed: Annotated[int, typer.Option(min=0, help="Decides what the experts draw.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result does not depend on it.")] = 1,
    output: Annotated[
        Path | None, typer.Option(help="Folder for records and results; repeat the command to go on after a stop.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, the rest on stderr.")] = False,
) -> None:
    from rfedge.benchmarks.success.chains import ChainPlan, Simulator, run_chains
    from rfedge.cli.show.progress import stage_progress
    from rfedge.cli.show.stopped import kept_when_stopped
    from rfedge.envs.chains import make_chains
    from rfedge.runtimes.rollout.chain_agents import expert_agent

    plan = ChainPlan(
        make_agent=expert_agent,
        agent_name="expert",
        world=Simulator(env, scene, render=False),
        language=language,
        max_steps=max_steps,
        seed=seed,
    )
    kept = f"finished chains are in {output}, the same command goes on" if output else "nothing was kept without --output"
    with kept_when_stopped(kept), stage_progress() as progress:
        drawn = make_chains(num, on_progress=lambda done, total: progress("drawing chains", done, total))
        if expert:
            report = run_chains(
                plan, drawn, output, workers=workers, on_chain=lambda done, total: progress("chains", done, total)
            )
    if expert:
        _print_report(report, as_json=as_json)
    else:
        _print_chains(drawn, as_json=as_json)


def _print_chains(drawn: Sequence[Chain], *, as_json: bool) -> None:
    import json
    import sys
    from collections import Counter

    from rfedge.cli.show.tables import print_table
    from rfedge.envs.chains import NUM_OFFICIAL, OFFICIAL_SHA256, chains_sha256

    counts = Counter(task for chain in drawn for task in chain.tasks)
    sha256 = chains_sha256(drawn)
    is_official = sha256 == OFFICIAL_SHA256 if len(drawn) == NUM_OFFICIAL else None
    print_table(f"{len(drawn)} chains", ("task", "times"), counts.most_common(), to_stderr=as_json)
    verdict = {True: ": CALVIN's 1000 chains", False: ": NOT CALVIN's 1000 chains", None: ""}[is_official]
    print(f"sha256 {sha256}{verdict}", file=sys.stderr if as_json else sys.stdout)
    if as_json:
        document = {"num_chains": len(drawn), "sha256": sha256, "official": is_official, "task_counts": dict(counts)}
        print(json.dumps(document))


def _print_report(report: ChainReport, *, as_json: bool) -> None:
    import sys

    from rfedge.cli.show.reports import write_report
    from rfedge.cli.show.tables import print_table

    rows = []
    for task, score in report.tasks.items():
        success, steps = score.success, "" if score.mean_steps is None else f"{score.mean_steps:.1f}"
        rows.append((task, success.successes, success.n, f"{success.value:.3f}", steps))
    print_table("tasks that were begun", ("task", "solved", "begun", "rate", "mean steps"), rows, to_stderr=as_json)
    rates = [
        (f">= {length}", f"{rate.value:.3f}", f"[{rate.low:.3f}, {rate.high:.3f}]")
        for length, rate in report.success_rates.items()
    ]
    print_table("solved in a row, 95 % interval", ("tasks", "rate", "interval"), rates, to_stderr=as_json)
    length, conditions = report.average_length, report.conditions
    print(
        f"average length {length.value:.3f} [{length.low:.3f}, {length.high:.3f}] over {length.n} chains: "
        f"{conditions.agent['name']} in {conditions.environment}, scene {conditions.scene}, seed {conditions.seed}; "
        f"{report.wall_seconds:.1f} s with {report.num_workers} workers, {report.num_resumed} chains were there before",
        file=sys.stderr if as_json else sys.stdout,
    )
    write_report(report, as_json=as_json)
