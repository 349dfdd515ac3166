"""How rows of success are printed, alone and joined with latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rfedge.benchmarks.success.chain_report import TaskScore
    from rfedge.benchmarks.success.report import Paired, SuccessReport, SuccessRow
    from rfedge.benchmarks.success.sweep_report import SweepReport
    from rfedge.records.statistics import Mean, Ratio


def print_success(report: SuccessReport, *, to_stderr: bool) -> None:
    """Print rates, lengths, what remains of the reference, and the tasks, as tables, and what they were measured on."""
    import sys

    from rfedge.cli.show.tables import print_table

    conditions, rows = report.conditions, report.rows
    if conditions.num_chains:
        title = f"{conditions.num_chains} chains in {report.world}: share with so many tasks solved in a row"
        columns = ("policy, steps per call, scene", *"12345", "95 % of 1", "95 % of 5", "average length")
        print_table(title, columns, [_rates(row) for row in rows], to_stderr=to_stderr)
    if conditions.starts_per_task:
        title = f"single tasks, {conditions.starts_per_task} prepared starts each"
        print_table(title, ("row", "success", "mean steps"), [_single(row) for row in rows], to_stderr=to_stderr)
    if any(row.paired for row in rows):
        columns = ("row", "chains: row - reference", "share that remains", "starts: row - reference", "share that remains")
        pairs = [_pairing(row, row.paired) for row in rows if row.paired is not None]
        print_table("paired with the reference, 95 % intervals", columns, pairs, to_stderr=to_stderr)
    columns = ("row", "kind", "mode", "mean steps", "jerk", "call p50 ms", "p90", "p99", "control steps")
    print_table("motion and time", columns, [_motion(row) for row in rows], to_stderr=to_stderr)
    _print_tasks(report, to_stderr=to_stderr)
    for row in rows:
        if row.interventions:
            changed = ", ".join(f"{count} {name}" for name, count in row.interventions.items())
            print(f"{row.name}: actions changed by the guard: {changed}", file=sys.stderr if to_stderr else sys.stdout)
    for item in report.not_possible:
        print(f"not possible: {item.policy} with {item.execute_steps} steps per call: {item.reason}", file=sys.stderr)
    if conditions.left_out_instructions:
        count = len(conditions.left_out_instructions)
        print(f"left out: {count} held-out instructions that one of the bundles does not know", file=sys.stderr)
    workers = max(row.num_workers for row in rows)
    print(
        f"times were taken while {workers} workers ran ({conditions.executor}); seed {conditions.seed}, "
        f"{sum(row.num_control_steps for row in rows)} control steps, "
        f"{_steps_per_second(rows):.1f} a second and worker; this call {report.wall_seconds:.1f} s",
        file=sys.stderr if to_stderr else sys.stdout,
    )


def _steps_per_second(rows: tuple[SuccessRow, ...]) -> float:
    return sum(row.num_control_steps for row in rows) / max(1e-9, sum(row.rollout_seconds for row in rows))


def _rates(row: SuccessRow) -> tuple[str, ...]:
    assert row.chains is not None, "only printed where every row has chains"
    rates, length = row.chains.success_rates, row.chains.average_length
    return (
        row.name,
        *(f"{rate.value:.3f}" for rate in rates.values()),
        *(f"[{rates[key].low:.3f}, {rates[key].high:.3f}]" for key in ("1", "5")),
        f"{length.value:.3f} [{length.low:.3f}, {length.high:.3f}]",
    )


def _single(row: SuccessRow) -> tuple[str, ...]:
    assert row.single_tasks is not None, "only printed where every row has single tasks"
    success, steps = row.single_tasks.success, row.single_tasks.mean_solved_steps
    return (
        row.name,
        f"{success.value:.3f} [{success.low:.3f}, {success.high:.3f}]",
        "-" if steps is None else f"{steps:.1f}",
    )


def _pairing(row: SuccessRow, paired: Paired) -> tuple[str, ...]:
    return (
        row.name,
        _interval(paired.average_length_difference, signed=True),
        _interval(paired.average_length_share),
        _interval(paired.single_task_difference, signed=True),
        _interval(paired.single_task_share),
    )


def _interval(found: Mean | Ratio | None, *, signed: bool = False) -> str:
    if found is None:
        return "-"
    form = "+.3f" if signed else ".3f"
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"


def _motion(row: SuccessRow) -> tuple[str, ...]:
    steps, call_ms = row.mean_solved_steps, row.call_ms
    return (
        row.name,
        row.loop,
        row.mode,
        "-" if steps is None else f"{steps:.1f}",
        "-" if row.jerk is None else f"{row.jerk:.3f}",
        *(("-",) * 3 if call_ms is None else (f"{time_ms:.2f}" for time_ms in (call_ms.p50, call_ms.p90, call_ms.p99))),
        str(row.num_control_steps),
    )


def _print_tasks(report: SuccessReport, *, to_stderr: bool) -> None:
    """Print solved/begun of every task; the columns are numbered, because names of many rows fit into no line."""
    from rfedge.cli.show.tables import print_table

    for what, tables in (
        ("chains", [row.chains.tasks for row in report.rows if row.chains is not None]),
        ("single tasks", [row.single_tasks.tasks for row in report.rows if row.single_tasks is not None]),
    ):
        names = {task for tasks in tables for task in tasks}
        cells = [(task, *(_solved(tasks.get(task)) for tasks in tables)) for task in sorted(names, key=_task_number)]
        if cells:
            columns = ("task", *(f"row {number + 1}" for number in range(len(tables))))
            print_table(f"{what}: solved/begun", columns, cells, to_stderr=to_stderr)


def _solved(score: TaskScore | None) -> str:
    return "-" if score is None else f"{score.success.successes}/{score.success.n}"


def _task_number(task: str) -> int:
    from rfedge.envs.tasks import TASKS

    return TASKS.index(task)


def print_speed(report: SweepReport, *, to_stderr: bool) -> None:
    """Print success beside the latency of a call and of a control step."""
    from rfedge.cli.show.tables import print_table

    rows = []
    for row, joined in zip(report.success.rows, report.rows, strict=True):
        success = row.chains.average_length if row.chains else row.single_tasks.success if row.single_tasks else None
        call, step = joined.per_call_ms, joined.per_control_step_ms
        rows.append(
            (
                row.name,
                row.loop,
                "-" if success is None else f"{success.value:.3f} [{success.low:.3f}, {success.high:.3f}]",
                f"{call.p50:.2f}",
                f"{step.p50:.2f}",
                f"{step.p99:.2f}",
                "-" if joined.completion_s is None else f"{joined.completion_s:.2f}",
                "-" if joined.synchronous_completion_s is None else f"{joined.synchronous_completion_s:.2f}",
                "-" if joined.jerk is None else f"{joined.jerk:.3f}",
            )
        )
    measure = "average length" if report.success.conditions.num_chains else "success"
    columns = ("row", "kind", measure, "call ms", "step ms", "step p99", "task s", "waiting", "jerk")
    threads = report.latency.conditions.threads
    title = f"success against latency: median call, timed alone with {threads or 'all'} threads, and the same over its steps"
    print_table(title, columns, rows, to_stderr=to_stderr)
