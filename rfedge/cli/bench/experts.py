"""`rfedge bench success --expert`: how often and how fast the scripted experts do tasks and chains."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfedge.benchmarks.success.expert_success import ExpertSuccessReport

_TASKS_FILE = "experts.json"


def measure_experts(
    given: Mapping[str, Any], *, num: int, anywhere: bool, gated: bool, workers: int, output: Path | None
) -> None:
    """Run the experts task by task where `--single-tasks` asks for it, else in chains; they render nothing."""
    from rfedge.benchmarks.success import expert_success
    from rfedge.benchmarks.success.chains import ChainPlan, run_chains
    from rfedge.benchmarks.success.plan import parse_tasks
    from rfedge.cli.bench.success import Worlds, kept_note
    from rfedge.cli.options import plan_of
    from rfedge.cli.show.progress import kept_when_stopped, stage_progress
    from rfedge.cli.show.reports import show_report, write_report
    from rfedge.envs.chains import make_chains
    from rfedge.envs.experts import EXPERT_TASKS
    from rfedge.errors import ConfigError
    from rfedge.runtimes.rollout.rollout_session import expert_agent

    world, *others = plan_of(Worlds, given).simulators(render=False)
    if others:
        raise ConfigError("--scene", got=f"{1 + len(others)} scenes", expected="one with --expert", remedy="Name one.")
    if given["single_tasks"]:
        plan = expert_success.ExpertSuccessPlan(
            env=world.name,
            scene=world.scene,
            tasks=parse_tasks(given["tasks"], EXPERT_TASKS),
            episodes=given["single_tasks"],
            limit_steps=given["max_steps"],
            seed=given["seed"],
            anywhere=anywhere,
        )
        with stage_progress() as progress:
            tasks = expert_success.run_expert_success(plan, workers=workers, on_task=partial(progress, "tasks"))
        _print_tasks(tasks)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
        write_report(tasks, None if output is None else output / _TASKS_FILE)
        if gated:
            expert_success.assert_success(tasks)  # last, so that the numbers behind a failed gate are on the screen
        return
    chain_plan = ChainPlan(
        make_agent=expert_agent, agent_name="expert", world=world, max_steps=given["max_steps"], seed=given["seed"]
    )
    with kept_when_stopped(kept_note(output)), stage_progress() as progress:
        sampled = make_chains(num, on_progress=partial(progress, "sampling chains"))
        chains = run_chains(chain_plan, sampled, output, workers=workers, on_chain=partial(progress, "chains"))
    show_report(chains)


def _print_tasks(report: ExpertSuccessReport) -> None:
    from rfedge.cli.show.tables import print_table, say

    rows = []
    for task, score in report.tasks.items():
        steps = "" if score.median_steps is None else f"{score.median_steps:.0f}"
        failed = " ".join(map(str, score.failed_seeds))
        rows.append((task, f"{score.success.successes}/{score.success.n}", score.within_window, steps, failed))
    columns = ("task", "solved", "within 64", "median steps", "failed seeds")
    print_table(f"experts in {report.environment}, scene {report.scene}", columns, rows)
    worst = min(score.success.value for score in report.tasks.values())
    say(
        f"{report.num_nearly_always} of {len(report.tasks)} tasks at 95 % or more, the least at {worst:.0%}; "
        f"{report.episodes} starts per task, at most {report.limit_steps} steps; {report.wall_seconds:.1f} s"
    )
