"""The page's part on success: drawings, rows, differences from the reference, and every task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from rfedge.benchmarks.report.chart import Axis, Point, Series, draw_points, key
from rfedge.benchmarks.report.collect import Collection
from rfedge.benchmarks.report.document import Cell, Figure, Part, Section, Table, missing, titled
from rfedge.benchmarks.report.first_table import Machines
from rfedge.benchmarks.report.joined import JoinedRow, SuccessPart, success_parts
from rfedge.benchmarks.report.words import count, length, milliseconds, plain, share
from rfedge.benchmarks.studies.ablations import AblationsReport
from rfedge.benchmarks.success.chain_report import ChainReport, TaskScore
from rfedge.benchmarks.success.expert_success import ExpertSuccessReport
from rfedge.benchmarks.success.report import SuccessRow, ensemble_suffix
from rfedge.envs.looks import world_name
from rfedge.envs.tasks import TASKS
from rfedge.records.statistics import Proportion, proportion
from rfedge.runtimes.rollout.rollouts import RolloutReport

__all__ = ["drawings", "expert_section", "pareto_front", "success_sections"]

_ALONE = "no chains were asked for"


def drawings(rows: Sequence[JoinedRow], machines: Machines) -> list[Part]:
    """Return success against time and success against steps per call, for what has both."""
    scored = _once([row for row in rows if row.score is not None])
    parts: list[Part] = []
    for is_chains in (True, False):
        same = [row for row in scored if (row.success is not None and row.success.chains is not None) is is_chains]
        what, top = ("average length of 5", 5.0) if is_chains else ("share of single tasks", 1.0)
        timed = [row for row in same if row.per_step_ms is not None]
        if timed:
            parts.append(_pareto(timed, machines, Axis(what, low=0.0, high=top)))
        if same:
            parts.append(_horizon(same, Axis(what, low=0.0, high=top)))
    return parts


def _once(rows: Sequence[JoinedRow]) -> list[JoinedRow]:
    """Leave a way to run a policy to the record with the most rows, beside which it can be compared chain by chain."""
    num_rows = Counter(row.record for row in rows)
    chosen: dict[tuple[object, ...], str] = {}
    for row in rows:
        best = chosen.setdefault(_way(row), row.record)
        if num_rows[row.record] > num_rows[best]:
            chosen[_way(row)] = row.record
    return [row for row in rows if chosen[_way(row)] == row.record]


def _way(row: JoinedRow) -> tuple[object, ...]:
    if row.success is None or row.policy is None:
        raise ValueError(f"{row.label}: a way to run it needs a success")
    success = row.success
    how = (success.mode, success.execute_steps, success.ensemble, success.language)
    return row.policy.manifest_sha256, row.environment, success.scene, *how


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Return the points that no other beats in both, less time and more success, from the fastest on."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def success_sections(collection: Collection) -> list[Section]:
    """Return one section for every success document, and one for its tasks."""
    sections = []
    parts = [(part.name, part) for part in success_parts(collection)]
    for title, part in titled("Success", parts):
        sections.append(Section(title, _tables(part)))
        scores = {row.name: row.chains.tasks for row in part.report.rows if row.chains is not None}
        single = {row.name: row.single_tasks.tasks for row in part.report.rows if row.single_tasks is not None}
        tables: list[Part] = []
        if scores:
            tables.append(_task_table("Tasks of chains, solved of begun: a task that no chain reached is empty.", scores))
        if single:
            tables.append(_task_table("Single tasks from prepared starts, solved of begun.", single))
        if tables:
            sections.append(Section(title.replace("Success", "Task by task", 1), tables))
    ablations = collection.of(AblationsReport)
    if ablations:
        sections.append(Section("What each part is worth", [_ablations(report) for _, report in ablations]))
    rollouts = collection.of(RolloutReport)
    if rollouts:
        sections.append(Section("Episodes", [_episodes(rollouts)]))
    return sections


def expert_section(collection: Collection) -> Section | None:
    """Return what the scripted experts do, the upper end of what a policy that learns from them can, and others' chains."""
    chains, experts = collection.of(ChainReport), collection.of(ExpertSuccessReport)
    parts: list[Part] = []
    if chains:
        parts.append(_chain_table(chains))
    others = any(report.conditions.agent.get("name") != "expert" for _, report in chains)
    if experts:
        names = {name: f"{report.environment} {report.scene}{', anywhere' * report.anywhere}" for name, report in experts}
        names = {name: title if list(names.values()).count(title) == 1 else name for name, title in names.items()}
        scores = {names[name]: {t: s.success for t, s in report.tasks.items()} for name, report in experts}
        limits = ", ".join(dict.fromkeys(str(report.limit_steps) for _, report in experts))
        parts.append(_heat(f"Experts from random starts, solved of begun, at most {limits} steps each.", scores))
    return Section("Chains and experts" if others else "Scripted experts", parts) if parts else None


def _pareto(rows: Sequence[JoinedRow], machines: Machines, y: Axis) -> Figure:
    several = len({row.speed.machine for row in rows if row.speed is not None}) > 1
    series = _series(rows, lambda row: f", {machines.mark(row.speed.machine)}" if several and row.speed else "", _time_point)
    front = [] if several else pareto_front(point for one in series for point in one.points)
    line = " The dashed line joins the points that none beats in both." if len(front) > 1 else ""
    drawing = draw_points(
        "Success against time",
        f"{y.title} over milliseconds for each control step, for {len(rows)} ways to run a policy",
        series,
        Axis("p50 of a call over its control steps, ms", log=True),
        y,
        front,
    )
    caption = f"{y.title} with its 95 % interval against the median time per control step; k is steps per call.{line}"
    return Figure(drawing, caption, [(key(one.index), one.name) for one in series])


def _horizon(rows: Sequence[JoinedRow], y: Axis) -> Figure:
    once = list({(row.record, row.success.name): row for row in rows if row.success is not None}.values())
    series = _series(once, lambda _: "", _step_point, is_line=True)
    steps = sorted({row.execute_steps for row in once if row.execute_steps is not None})
    drawing = draw_points(
        "Success over the horizon",
        f"{y.title} over control steps per policy call, one line a bundle",
        series,
        Axis("control steps per policy call", ticks=steps, low=0.0),
        y,
    )
    caption = f"{y.title} with its 95 % interval against the control steps that one call serves."
    return Figure(drawing, caption, [(key(one.index), one.name) for one in series])


def _series(
    rows: Sequence[JoinedRow],
    ending: Callable[[JoinedRow], str],
    place: Callable[[JoinedRow], Point],
    *,
    is_line: bool = False,
) -> list[Series]:
    """Group rows by bundle and ensemble, by scene, language and `ending` where there are several, and by record where two
    have what is else the same.
    """
    scenes = {(row.environment, row.success.scene) for row in rows if row.success is not None}
    languages = {row.success.language for row in rows if row.success is not None}
    named: dict[str, dict[str, list[JoinedRow]]] = {}
    for row in rows:
        name = row.label
        if row.success is not None:
            name += f", {row.environment} {row.success.scene}" if len(scenes) > 1 else ""
            name += f", {row.success.language}" if len(languages) > 1 else ""
            name += ensemble_suffix(row.success.ensemble)
        named.setdefault(name + ending(row), {}).setdefault(row.record, []).append(row)
    groups = {
        f"{name}, {record}" if len(records) > 1 else name: group
        for name, records in named.items()
        for record, group in records.items()
    }
    return [
        Series(name, sorted(map(place, group), key=lambda point: point.x), index, is_line)
        for index, (name, group) in enumerate(groups.items())
    ]


def _time_point(row: JoinedRow) -> Point:
    score, per_step, speed = row.score, row.per_step_ms, row.speed
    if score is None or per_step is None or speed is None:
        raise ValueError(f"{row.label}: a point needs a success and a time")
    name = row.success.name if row.success is not None else row.label
    words = f"{name}: {score.value:.2f} [{score.low:.2f}, {score.high:.2f}] at {milliseconds(per_step.p50)} ms per step"
    return Point(per_step.p50, score.value, score.low, score.high, label=f"k={row.execute_steps}", tooltip=words)


def _step_point(row: JoinedRow) -> Point:
    score = row.score
    if score is None or row.execute_steps is None or row.success is None:
        raise ValueError(f"{row.label}: a point needs a success and steps")
    words = f"{row.success.name}: {score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"
    return Point(float(row.execute_steps), score.value, score.low, score.high, tooltip=words)


def _tables(part: SuccessPart) -> list[Part]:
    report, conditions = part.report, part.report.conditions
    tables: list[Part] = []
    world = f"{report.world}, at most {conditions.max_steps} steps a task, seed {conditions.seed}"
    with_chains = [row for row in report.rows if row.chains is not None]
    if with_chains:
        columns = ["way", "run as", "1", "2", "3", "4", "5", "average length", "steps of a solved task", "jerk"]
        rows = [_chain_row(row) for row in with_chains]
        chains = count(conditions.num_chains, "chain")
        caption = f"Share of {chains} with at least so many tasks solved in a row, 95 % intervals ({world})."
        tables.append(Table(caption, columns, rows, text_columns=2))
    with_single = [row for row in report.rows if row.single_tasks is not None]
    if with_single:
        starts = count(conditions.starts_per_task, "prepared start")
        caption = f"Single tasks, each from {starts}, 95 % intervals ({world})."
        columns = ["way", "run as", "solved of all starts", "steps of a solved start", "jerk"]
        tables.append(Table(caption, columns, [_single_row(row) for row in with_single], text_columns=2))
    paired = [row for row in report.rows if row.paired is not None]
    if paired:
        caption = "Differences from the reference, chain by chain and start by start, 95 % bootstrap intervals."
        columns = ["way", "reference", "average length", "share of it", "single tasks", "share of them"]
        tables.append(Table(caption, columns, [_paired_row(row) for row in paired], text_columns=2))
    if part.sweep is not None:
        tables.append(_completion(part))
    timed = [row for row in report.rows if row.call_ms is not None]
    if timed:
        caption = "Policy calls during the rollouts, beside other workers: good for comparing these rows, not for a robot."
        columns = ["way", "calls", "p50 ms", "p90 ms", "p99 ms", "workers", "control steps", "rollout time s"]
        tables.append(Table(caption, columns, [_busy_row(row) for row in timed]))
    if report.not_possible:
        caption = "Asked for and not possible."
        refused = [(one.policy, one.precision, str(one.execute_steps), one.reason) for one in report.not_possible]
        tables.append(Table(caption, ["bundle", "precision", "steps per call", "why"], refused, text_columns=4))
    return tables


def _chain_row(row: SuccessRow) -> list[str | Cell]:
    chains = row.chains
    if chains is None:
        raise ValueError(f"{row.name}: no chains")
    rates = [Cell(share(rate), heat=rate.value) for rate in chains.success_rates.values()]
    return [row.name, row.loop, *rates, length(chains.average_length), _solved_steps(chains.mean_solved_steps), _jerk(row)]


def _single_row(row: SuccessRow) -> list[str | Cell]:
    single = row.single_tasks
    if single is None:
        raise ValueError(f"{row.name}: no single tasks")
    solved = Cell(f"{share(single.success)} ({single.success.successes}/{single.success.n})", heat=single.success.value)
    return [row.name, row.loop, solved, _solved_steps(single.mean_solved_steps), _jerk(row)]


def _paired_row(row: SuccessRow) -> list[str | Cell]:
    paired = row.paired
    if paired is None:
        raise ValueError(f"{row.name}: no reference")
    nothing = "the reference solved nothing"
    differences = (paired.average_length_difference, paired.single_task_difference)
    shares = (paired.average_length_share, paired.single_task_share)
    cells: list[str | Cell] = [row.name, paired.reference]
    for difference, part, reason in zip(differences, shares, (_ALONE, "no single tasks were asked for"), strict=True):
        if difference is None:
            cells += [missing(reason), missing(reason)]
        else:
            cells.append(f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]")
            cells.append(missing(nothing) if part is None else share(part))
    return cells


def _completion(part: SuccessPart) -> Table:
    rows: list[list[str | Cell]] = []
    for row in part.sweep.rows if part.sweep is not None else ():
        nothing = "no task was solved"
        rows.append(
            [
                row.row,
                *(milliseconds(value) for value in (row.per_call_ms.p50, row.per_control_step_ms.p50)),
                plain(row.completion_s, 2, nothing),
                plain(row.synchronous_completion_s, 2, nothing),
            ]
        )
    hz = part.report.conditions.control_hz
    caption = f"Time of a solved task at {hz:g} control steps per second, and where the robot waits for every call."
    return Table(caption, ["way", "p50 ms a call", "p50 ms a step", "solved in s", "waiting for calls, s"], rows)


def _ablations(report: AblationsReport) -> Table:
    rows: list[list[str | Cell]] = []
    for variant, row in zip(report.variants, report.success.rows, strict=True):
        single, chains = row.single_tasks, row.chains
        rows.append(
            [
                variant.name,
                variant.change,
                str(variant.steps),
                plain(variant.held_out_loss, 4, "no demonstrations were held out"),
                missing("no single tasks were asked for") if single is None else share(single.success),
                missing(_ALONE) if chains is None else length(chains.average_length),
            ]
        )
    minutes = max(variant.seconds for variant in report.variants) / 60.0
    first, max_steps = report.success.rows[0], report.success.conditions.max_steps
    caption = (
        f"The same {minutes:.0f} minutes of training with one thing changed each time, then the same rollouts of scene "
        f"{first.scene} at {count(first.execute_steps, 'step')} a call, at most {max_steps} steps a task; 95 % intervals."
    )
    columns = ["variant", "what is changed", "training steps", "held-out loss", "single tasks", "average length of 5"]
    return Table(caption, columns, rows, text_columns=2)


def _busy_row(row: SuccessRow) -> list[str | Cell]:
    if row.call_ms is None:
        raise ValueError(f"{row.name}: no calls")
    times = (milliseconds(value) for value in (row.call_ms.p50, row.call_ms.p90, row.call_ms.p99))
    counts = (str(row.num_workers), str(row.num_control_steps), f"{row.rollout_seconds:.0f}")
    return [row.name, str(row.num_inferences), *times, *counts]


def _solved_steps(value: float | None) -> Cell:
    return plain(value, 1, "nothing was solved")


def _jerk(row: SuccessRow) -> Cell:
    return plain(row.jerk, 4, "no task took three steps")


def _task_table(caption: str, scores: Mapping[str, Mapping[str, TaskScore]]) -> Table:
    return _heat(caption, {name: {task: score.success for task, score in tasks.items()} for name, tasks in scores.items()})


def _heat(caption: str, scores: Mapping[str, Mapping[str, Proportion]]) -> Table:
    """Return tasks as rows and `scores`' keys as columns."""
    named = [task for task in TASKS if any(task in tasks for tasks in scores.values())]
    rows: list[list[str | Cell]] = []
    for task in named:
        found = [tasks.get(task) for tasks in scores.values()]
        rows.append(
            [task, *(Cell("") if one is None else Cell(f"{one.successes}/{one.n}", heat=one.value) for one in found)]
        )
    return Table(caption, ["task", *scores], rows)


def _chain_table(reports: Sequence[tuple[str, ChainReport]]) -> Table:
    rows: list[list[str | Cell]] = []
    for name, report in reports:
        conditions = report.conditions
        rates = [Cell(share(rate), heat=rate.value) for rate in report.success_rates.values()]
        who = conditions.agent.get("name", "unknown")
        world = f"{world_name(conditions.environment, report.looks, report.renderer)} {conditions.scene}"
        rows.append([name, who, world, str(conditions.num_chains), *rates, length(report.average_length)])
    columns = ["record", "who", "world", "chains", "1", "2", "3", "4", "5", "average length"]
    caption = "Chains of five tasks: share with at least so many solved in a row, 95 % intervals."
    return Table(caption, columns, rows, text_columns=3)


def _episodes(reports: Sequence[tuple[str, RolloutReport]]) -> Table:
    rows: list[list[str | Cell]] = []
    for name, report in reports:
        judged = [episode.success for episode in report.episodes if episode.success is not None]
        solved = Cell(share(proportion(sum(judged), len(judged)))) if judged else missing("nobody could judge the episodes")
        total = report.per_call_ms.get("total")
        times = (
            [missing("no episode ended")] * 3
            if total is None
            else [milliseconds(v) for v in (total.p50, total.p90, total.p99)]
        )
        how = f"{report.mode}, {count(report.execute_steps, 'step')} per call"
        rows.append(
            [name, f"{report.policy} in {report.precision}", how, report.instruction, solved, f"{len(judged)}", *times]
        )
    columns = ["record", "policy", "mode", "instruction", "solved", "judged", "p50 ms", "p90 ms", "p99 ms"]
    return Table("Runs of one instruction, 95 % intervals; latency in the loop.", columns, rows, text_columns=4)
