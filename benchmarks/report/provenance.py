"""Where every number comes from, what is quoted, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel

from rfedge.benchmarks.latency.environment_speed import EnvironmentSpeedReport
from rfedge.benchmarks.records.quoted import QuotedBaselines
from rfedge.benchmarks.report.collect import Collection
from rfedge.benchmarks.report.document import Cell, Part, Section, Table, Text, missing
from rfedge.benchmarks.report.first_table import Machines
from rfedge.benchmarks.report.joined import JoinedRow
from rfedge.benchmarks.report.words import commit, plain
from rfedge.benchmarks.success.chain_report import ChainReport
from rfedge.benchmarks.success.report import SuccessReport
from rfedge.benchmarks.success.sweep_report import SweepReport
from rfedge.records.machine import Machine, Measurement
from rfedge.runtimes.rollout.rollouts import RolloutReport

__all__ = ["missing_facts", "missing_section", "quoted_section", "records_section"]

# formats of which at least one should be there -> what is missing without them, and what measures it
_WANTED: Final = (
    (("rfedge-success", "rfedge-sweep"), "success of a policy: rfedge bench success"),
    (("rfedge-sweep",), "success over the horizon, joined with latency: rfedge bench sweep"),
    (("rfedge-latency", "rfedge-sweep"), "latency beside PyTorch and a noise floor: rfedge bench latency"),
    (("rfedge-ablations",), "what each part of the policy is worth: python -m rfedge.benchmarks.studies.ablations"),
    (("rfedge-precisions",), "size, error and time of every precision: python -m rfedge.benchmarks.latency.precisions"),
    (("rfedge-mixed",), "what int8 does block by block: name a mixed bundle's folder"),
    (("rfedge-head-speed",), "the head beside the memory's limit: python -m rfedge.benchmarks.studies.head_speed"),
    (("rfedge-loop",), "deadlines and memory of the control loop: rfedge bench loop"),
    (("rfedge-server",), "the server under load: rfedge bench server"),
    (("rfedge-peers",), "other runtimes on the same policy: rfedge bench peers"),
    (
        ("rfedge-chains", "rfedge-expert-success"),
        "what the scripted experts do: rfedge bench chains --expert, rfedge bench experts",
    ),
)


def records_section(collection: Collection, machines: Machines) -> Section:
    """Return every record with date, commit, machine, versions and renderer, and every machine."""
    rows: list[list[str | Cell]] = []
    for one in collection.found:
        renderer = _renderer(one.record)
        record = one.record
        if isinstance(record, Measurement):
            rows.append(
                [
                    one.name,
                    one.form,
                    record.measured_at,
                    commit(record.commit),
                    machines.mark(record.machine),
                    renderer,
                    _versions(record.versions),
                ]
            )
        else:
            nothing = missing("this kind of record does not tell")
            versions = getattr(record, "versions", None)
            told = _versions(versions) if isinstance(versions, dict) else nothing
            rows.append([one.name, one.form, nothing, nothing, nothing, renderer, told])
    columns = ["record", "format", "measured at", "commit", "machine", "renderer", "versions"]
    places = [_machine_row(mark, machine) for machine, mark in machines.marks.items()]
    names = ["mark", "processor", "cores used", "cores", "memory GiB", "instructions", "governor", "system"]
    parts: list[Part] = [Table("Where every number on this page comes from.", columns, rows, text_columns=7)]
    if places:
        parts.append(Table("Machines.", names, places, text_columns=8))
    return Section("Records and machines", parts)


def quoted_section(quoted: QuotedBaselines) -> Section:
    """Return the published numbers, marked as what they are."""
    rows: list[list[str | Cell]] = []
    for row in quoted.rows:
        rates: Sequence[str | Cell] = (
            [missing("not printed in that table")] * 5 if row.rates is None else [f"{rate:.3f}" for rate in row.rates]
        )
        rows.append(
            [
                row.method,
                row.training,
                row.test,
                f"{row.source}, {row.place}",
                *rates,
                f"{row.average_length:.2f}",
                plain(row.llm_gflops, 1, "not printed in that table"),
            ]
        )
    columns = [
        "method (quoted)",
        "trained on",
        "tested on",
        "1",
        "2",
        "3",
        "4",
        "5",
        "average length",
        "LLM GFLOPs",
        "source",
    ]
    told = (
        "Quoted, not measured here: numbers that papers print for CALVIN, with its scenes, its renderer and its human "
        "demonstrations. "
        "They are no baseline for numbers from PlayTable, which is another simulator with other demonstrations."
    )
    sources = [(f"{name}: {source.title}", source.url) for name, source in quoted.sources.items()]
    table = Table(
        "Quoted from papers: share of 1000 chains with so many tasks solved in a row.", columns, rows, text_columns=3
    )
    return Section("Quoted baselines", [Text(told), table, Text("Sources:", sources)])


def missing_facts(collection: Collection, rows: Sequence[JoinedRow], num_pictures: int) -> tuple[str, ...]:
    """Return what nobody measured, one sentence each: kinds of record, then halves of rows."""
    forms = {one.form for one in collection.found}
    wanted = [words for needed, words in _WANTED if not forms.intersection(needed)]
    unmatched = dict.fromkeys(
        f"{row.label} in {row.bundle.precision}: {'no success' if row.success is None else 'no latency'}"
        for row in rows
        if row.success is None or row.speed is None
    )
    timed = [row.speed for row in rows if row.speed is not None]
    if timed and not any(speed.resources is not None and speed.resources.power for speed in timed):
        reasons = dict.fromkeys(
            speed.resources_reason if speed.resources is None else speed.resources.power_reason for speed in timed
        )
        wanted.append(f"power: {'; '.join(filter(None, reasons))}")
    if not num_pictures:
        wanted.append("pictures of rollouts: --gif")
    return (*wanted, *unmatched)


def missing_section(collection: Collection, missing_ones: Sequence[str]) -> Section:
    """Return what nobody measured, and the files that were left out."""
    told = (
        "Not in the records that were given:"
        if missing_ones
        else "Every kind of record is here, and every row has both halves."
    )
    parts: list[Part] = [Text(told, missing_ones)]
    if collection.left_out:
        parts.append(Text("Files that were left out:", [f"{one.name}: {one.reason}" for one in collection.left_out]))
    return Section("What is missing", parts)


def _renderer(record: BaseModel) -> str | Cell:
    if isinstance(record, SweepReport):
        return _renderer(record.success)
    if isinstance(record, SuccessReport):
        names = dict.fromkeys(f"{row.renderer}{f', looks {row.looks}' if row.looks else ''}" for row in record.rows)
        return ", ".join(names) or missing("no row ran")
    if isinstance(record, ChainReport | EnvironmentSpeedReport | RolloutReport):
        return record.renderer if record.looks is None else f"{record.renderer}, looks {record.looks}"
    return missing("nothing was drawn")


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _machine_row(mark: str, machine: Machine) -> list[str | Cell]:
    cores = missing("the system does not tell") if machine.physical_cores is None else str(machine.physical_cores)
    flags = ", ".join(machine.cpu_flags) or missing("none of those that decide int8 and 16-bit MatMuls")
    memory = f"{machine.memory_bytes / 2**30:.1f}"
    governor = machine.governor or missing("the system does not tell")
    return [mark, machine.cpu, str(machine.usable_cores), cores, memory, flags, governor, machine.system]
