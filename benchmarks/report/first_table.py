"""The first screen: what was measured in one sentence, and success beside speed, memory and power."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from rfedge.benchmarks.report.collect import Collection
from rfedge.benchmarks.report.document import Cell, Table, missing
from rfedge.benchmarks.report.joined import JoinedRow, success_parts
from rfedge.benchmarks.report.words import bytes_mb, count, length, milliseconds, percentiles, share
from rfedge.envs.chains import CHAIN_LENGTH
from rfedge.records.machine import Machine
from rfedge.runtimes.rollout.resources import PowerRecord

__all__ = ["Machines", "bundle_tables", "first_tables", "sentence"]

_NO_SUCCESS: Final = "no success record of this bundle: run rfedge bench success or sweep"
_NO_SPEED: Final = "no latency record of this bundle: run rfedge bench latency or sweep"
_NO_CHAINS: Final = "no chains were asked for"
_NO_STEPS: Final = "this record times a call, however many steps of it are played"


@dataclass(slots=True)
class Machines:
    """Marks of the machines, M1, M2, ... in the order in which they are met."""

    marks: dict[Machine, str] = field(default_factory=dict)

    def mark(self, machine: Machine) -> str:
        """Return the machine's mark."""
        return self.marks.setdefault(machine, f"M{len(self.marks) + 1}")


Column = tuple[str, Callable[[JoinedRow], str | Cell]]


def sentence(rows: Sequence[JoinedRow], collection: Collection, machines: Machines) -> str:
    """Return one sentence on what was measured."""
    succeeded = [row for row in rows if row.success is not None]
    alone = [row for row in rows if row.success is None]
    pieces = []
    if succeeded:
        pieces.append(f"success of {_names(succeeded)} over {_amounts(collection)}")
        if any(row.speed is not None for row in succeeded):
            pieces.append(f"their latency on {_places(succeeded, machines)}")
    if alone:
        pieces.append(f"latency, without success, of {_names(alone)} on {_places(alone, machines)}")
    if not pieces:
        return "Neither success nor latency of a bundle is in these records; what they hold is below."
    *most, last = pieces
    text = f"{', '.join(most)} and {last}" if most else last
    return f"Measured: {text}{'' if succeeded else '. No success was measured, and speed alone proves nothing'}."


def _names(rows: Sequence[JoinedRow]) -> str:
    return ", ".join(dict.fromkeys(row.label for row in rows))


def _places(rows: Sequence[JoinedRow], machines: Machines) -> str:
    found = dict.fromkeys(row.speed.machine for row in rows if row.speed is not None)
    return "; ".join(f"{machines.mark(one)}, {one.cpu} with {count(one.usable_cores, 'core')}" for one in found)


def _amounts(collection: Collection) -> str:
    """Return such as "200 chains of five tasks and 20 starts of each of 34 tasks (playtable, scene D)"."""
    texts: dict[str, None] = {}
    for part in success_parts(collection):
        conditions, rows = part.report.conditions, part.report.rows
        pieces = [f"{count(conditions.num_chains, 'chain')} of five tasks"] if conditions.num_chains else []
        tasks = max((len(row.single_tasks.tasks) for row in rows if row.single_tasks is not None), default=0)
        if tasks:
            pieces.append(f"{count(conditions.starts_per_task, 'start')} of each of {count(tasks, 'task')}")
        scenes = ", ".join(dict.fromkeys(row.scene for row in rows))
        texts[f"{' and '.join(pieces)} ({part.report.world}, scene {scenes})"] = None
    return "; ".join(texts)


def first_tables(rows: Sequence[JoinedRow], machines: Machines) -> tuple[Table | None, Table | None]:
    """Return success beside speed, memory and power of every row, and the same of bundles whose success nobody measured."""
    told = "Whole policy calls in ms; per step: the median call over the steps it serves."
    name: list[Column] = [("bundle", lambda row: row.label), ("precision", lambda row: row.bundle.precision)]
    tables: list[Table | None] = []
    for caption, some in (
        (f"Success with its 95 % interval, beside speed, memory and power. {told}", [row for row in rows if row.success]),
        (
            f"Timed without a record of success, so nothing is known of its worth. {told}",
            [row for row in rows if not row.success],
        ),
    ):
        columns = [*name, *_columns(some, machines)]
        tables.append(_table(caption, columns, some, text_columns=2) if some else None)
    return tables[0], tables[1]


def bundle_tables(rows: Sequence[JoinedRow], machines: Machines) -> list[tuple[str, Table]]:
    """Return (heading, table) for every bundle."""
    tables = []
    for label, bundle in dict.fromkeys((row.label, row.bundle) for row in rows):
        own = [row for row in rows if (row.label, row.bundle) == (label, bundle)]
        facts = f"{bundle.policy} in {bundle.precision}, {bundle.size_bytes / 1e6:.1f} MB"
        policy = next((row.policy for row in own if row.policy is not None), None)
        if policy is not None and policy.trained_on is not None:
            facts += f", trained on {policy.trained_on}"
        if policy is not None and policy.forced_past:
            facts += f", forced past {'; '.join(policy.forced_past)}"
        tables.append((label, _table(f"{facts}.", _columns(rows, machines), own, text_columns=0)))
    return tables


def _columns(rows: Sequence[JoinedRow], machines: Machines) -> list[Column]:
    """Return the columns after the bundle's name: those in which all rows are alike are left to other places."""
    succeeded = [row.success for row in rows if row.success is not None]
    columns: list[Column] = [("steps per call", _steps)]
    if len({row.record for row in rows if row.record}) > 1:
        columns.append(("measured over", _amount))
    if len({(row.environment, row.success.scene) for row in rows if row.success is not None}) > 1:
        columns.append(("world", lambda row: "-" if row.success is None else f"{row.environment} {row.success.scene}"))
    if len({success.language for success in succeeded}) > 1:
        columns.append(("language", lambda row: "-" if row.success is None else row.success.language))
    columns.append(("average length of 5", _average_length))
    if any(success.single_tasks is not None for success in succeeded):
        columns.append(("single tasks", _single_tasks))
    if any(success.paired is not None for success in succeeded):
        columns.append(("share of reference", _reference_share))
    if succeeded:
        columns.append(("run as", lambda row: missing(_NO_SUCCESS) if row.success is None else row.success.loop))
    columns += [
        ("call p50 / p90 / p99 ms", _call),
        ("p50 ms per step", _per_step),
        ("loading took MB", _loading),
        ("peak MB", _peak),
        ("power W", _power),
    ]
    if any(row.speed.resources.power for row in rows if row.speed is not None and row.speed.resources is not None):
        columns.append(("J per action", _joules))
    if len({(row.speed.machine, row.speed.backend) for row in rows if row.speed is not None}) > 1:
        columns.append(("machine", lambda row: _machine_cell(row, machines)))
    return columns


def _table(caption: str, columns: Sequence[Column], rows: Sequence[JoinedRow], *, text_columns: int) -> Table:
    return Table(
        caption,
        [name for name, _ in columns],
        [[cell(row) for _, cell in columns] for row in rows],
        text_columns=text_columns,
    )


def _steps(row: JoinedRow) -> Cell:
    return missing(_NO_STEPS) if row.execute_steps is None else Cell(str(row.execute_steps))


def _amount(row: JoinedRow) -> Cell:
    """Say over how much it was measured; the footnote has the record, whose name would take half of the table's width."""
    if row.success is None:
        return missing(_NO_SUCCESS)
    chains, single = row.success.chains, row.success.single_tasks
    pieces = [] if chains is None else [count(chains.num_chains, "chain")]
    pieces += [] if single is None else [count(single.success.n, "start")]
    return Cell(", ".join(pieces), row.record)


def _average_length(row: JoinedRow) -> Cell:
    if row.success is None:
        return missing(_NO_SUCCESS)
    chains = row.success.chains
    return (
        missing(_NO_CHAINS)
        if chains is None
        else Cell(length(chains.average_length), heat=chains.average_length.value / CHAIN_LENGTH)
    )


def _single_tasks(row: JoinedRow) -> Cell:
    if row.success is None:
        return missing(_NO_SUCCESS)
    single = row.success.single_tasks
    return (
        missing("no starts of single tasks were asked for")
        if single is None
        else Cell(share(single.success), heat=single.success.value)
    )


def _reference_share(row: JoinedRow) -> Cell:
    if row.success is None:
        return missing(_NO_SUCCESS)
    paired = row.success.paired
    if paired is None:
        return Cell("reference")
    value = paired.average_length_share if row.success.chains is not None else paired.single_task_share
    return missing(f"the reference {paired.reference!r} solved nothing") if value is None else Cell(share(value))


def _call(row: JoinedRow) -> Cell:
    if row.speed is None:
        return missing(_NO_SPEED)
    return Cell(" / ".join(percentiles(row.speed.per_call_ms)), row.speed_note)


def _per_step(row: JoinedRow) -> Cell:
    if row.speed is None:
        return missing(_NO_SPEED)
    per_step = row.per_step_ms
    return missing(_NO_STEPS) if per_step is None else Cell(milliseconds(per_step.p50))


def _loading(row: JoinedRow) -> Cell:
    return missing(_NO_SPEED) if row.speed is None else bytes_mb(row.speed.load_rss_bytes, "not in the record")


def _peak(row: JoinedRow) -> Cell:
    if row.speed is None:
        return missing(_NO_SPEED)
    resources = row.speed.resources
    return missing(row.speed.resources_reason) if resources is None else bytes_mb(resources.rss_peak_bytes, "")


def _power(row: JoinedRow) -> Cell:
    return _meters(row, lambda power: f"{power.mean_w:.1f}", "")


def _joules(row: JoinedRow) -> Cell:
    return _meters(
        row,
        lambda power: "-" if power.joules_per_action is None else f"{power.joules_per_action:.3f}",
        "energy over control steps, with what idling and other programs take",
    )


def _meters(row: JoinedRow, words: Callable[[PowerRecord], str], note: str) -> Cell:
    if row.speed is None:
        return missing(_NO_SPEED)
    resources = row.speed.resources
    if resources is None or not resources.power:
        return missing(row.speed.resources_reason if resources is None else resources.power_reason or "no meter was found")
    sources = ", ".join(power.source for power in resources.power)
    return Cell(", ".join(map(words, resources.power)), note or f"mean of {sources}")


def _machine_cell(row: JoinedRow, machines: Machines) -> Cell:
    if row.speed is None:
        return missing(_NO_SPEED)
    mark = machines.mark(row.speed.machine)
    return Cell(mark, f"{mark}: {row.speed.backend}, threads: {row.speed.threads}")
