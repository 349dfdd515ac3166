"""Joins success with speed: one row for each way to run a bundle on each machine it was timed on.

A speed belongs to a success when policy, precision and size in bytes are equal and, where both records tell, the manifest; a
footnote names the record it is from, if that is another one. Speed that no success belongs to stays in, without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rfedge.benchmarks.records.schema import LatencyReport, VariantResult
from rfedge.benchmarks.report.collect import Collection
from rfedge.benchmarks.success.precision_records import PrecisionRow, PrecisionsReport
from rfedge.benchmarks.success.report import PolicyRecord, SuccessReport, SuccessRow
from rfedge.benchmarks.success.sweep_report import SweepReport
from rfedge.records.machine import Machine
from rfedge.records.statistics import Mean, Proportion, Summary
from rfedge.runtimes.rollout.resources import ResourceRecord

__all__ = ["BundleName", "JoinedRow", "Speed", "SuccessPart", "join", "success_parts"]


@dataclass(frozen=True, slots=True)
class BundleName:
    """What a bundle is recognised by."""

    policy: str
    precision: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Speed:
    """Times of one bundle from one record.

    Attributes:
        record: name of the record.
        label: what it calls the bundle.
        folder: of the bundle; "" where the record does not tell.
        manifest_sha256: of the bundle; "" where the record does not tell.
        per_call_ms: total of a policy call.
        execute_steps: what the record divided by; None where it did not.
        backend: what ran it, such as "CPUExecutionProvider".
        threads: in words, as the record has it.
        resources_reason: why there are none.
    """

    bundle: BundleName
    record: str
    label: str
    folder: str
    measured_at: str
    machine: Machine
    per_call_ms: Summary
    execute_steps: int | None
    backend: str
    threads: str
    load_rss_bytes: int | None
    resources: ResourceRecord | None
    resources_reason: str
    manifest_sha256: str = ""


@dataclass(frozen=True, slots=True)
class SuccessPart:
    """A success document: one of its own, or that of a sweep."""

    name: str
    report: SuccessReport
    sweep: SweepReport | None = None


@dataclass(frozen=True, slots=True)
class JoinedRow:
    """One line of the first table.

    Attributes:
        label: of the bundle.
        success: None where there is only speed; `record`, its name, `environment` (as `SuccessReport.world`)
            and `policy` belong to it.
        speed: None where there is only success.
        execute_steps: of the success, else of the speed; None where neither has one.
        speed_note: what must be said beside the speed.
    """

    label: str
    bundle: BundleName
    execute_steps: int | None
    record: str = ""
    environment: str = ""
    policy: PolicyRecord | None = None
    success: SuccessRow | None = None
    speed: Speed | None = None
    speed_note: str = ""

    @property
    def per_step_ms(self) -> Summary | None:
        """A call's time over the control steps it serves."""
        if self.speed is None or self.execute_steps is None:
            return None
        return self.speed.per_call_ms.divided(self.execute_steps)

    @property
    def score(self) -> Mean | Proportion | None:
        """The average length where chains were run, else the share of single tasks."""
        if self.success is None:
            return None
        if self.success.chains is not None:
            return self.success.chains.average_length
        return None if self.success.single_tasks is None else self.success.single_tasks.success


def success_parts(collection: Collection) -> list[SuccessPart]:
    """Return all success documents, those inside sweeps first."""
    sweeps = [SuccessPart(name, sweep.success, sweep) for name, sweep in collection.of(SweepReport)]
    return sweeps + [SuccessPart(name, report) for name, report in collection.of(SuccessReport)]


def join(collection: Collection) -> list[JoinedRow]:
    """Return the rows of all success documents with their speeds, then the speeds that no success belongs to."""
    speeds = _speeds(collection)
    rows: list[JoinedRow] = []
    with_success: set[BundleName] = set()
    for part in success_parts(collection):
        variants = {} if part.sweep is None else {row.row: row.variant for row in part.sweep.rows}
        for row in part.report.rows:
            policy = part.report.policy_of(row)
            bundle = BundleName(policy.policy, policy.precision, policy.size_bytes)
            with_success.add(bundle)
            known = ("", policy.manifest_sha256)
            matches = [speed for speed in speeds if speed.bundle == bundle and speed.manifest_sha256 in known]
            own = (part.name, variants.get(row.name, ""))
            chosen: list[Speed | None] = [*_one_per_machine(matches, own, policy)]
            rows += [
                JoinedRow(
                    label=policy.label,
                    bundle=bundle,
                    execute_steps=row.execute_steps,
                    record=part.name,
                    environment=part.report.world,
                    policy=policy,
                    success=row,
                    speed=speed,
                    speed_note=_note(speed, policy),
                )
                for speed in chosen or [None]
            ]
    lonely = [speed for speed in speeds if speed.bundle not in with_success]
    for speed in lonely:
        again = [
            one for one in lonely if (one.bundle, one.machine, one.backend) == (speed.bundle, speed.machine, speed.backend)
        ]
        if speed.execute_steps is not None or all(one.execute_steps is None for one in again):
            rows.append(JoinedRow(speed.label, speed.bundle, speed.execute_steps, speed=speed))
    return rows


def _speeds(collection: Collection) -> list[Speed]:
    sweeps = [(name, sweep.latency, _timed_manifests(sweep)) for name, sweep in collection.of(SweepReport)]
    alone: list[tuple[str, LatencyReport, dict[str, str]]] = [(name, one, {}) for name, one in collection.of(LatencyReport)]
    speeds = [
        _variant_speed(name, report, variant, manifests.get(variant.name, ""))
        for name, report, manifests in sweeps + alone
        for variant in report.variants
        if variant.role == "bundle"
    ]
    speeds += [
        _form_speed(name, report, row, row.call_ms)
        for name, report in collection.of(PrecisionsReport)
        for row in report.rows
        if row.call_ms is not None
    ]
    return speeds


def _timed_manifests(sweep: SweepReport) -> dict[str, str]:
    """Return name of a timed variant -> hash of its bundle's manifest, which its success knows."""
    policies = {row.name: sweep.success.policy_of(row) for row in sweep.success.rows}
    return {joined.variant: policies[joined.row].manifest_sha256 for joined in sweep.rows}


def _form_speed(name: str, report: PrecisionsReport, row: PrecisionRow, call_ms: Summary) -> Speed:
    return Speed(
        bundle=BundleName(report.policy, row.precision, row.bundle_bytes),
        record=name,
        label=row.name,
        folder="",
        measured_at=report.measured_at,
        machine=report.machine,
        per_call_ms=call_ms,
        execute_steps=None,
        backend="CPUExecutionProvider",  # nothing else runs there
        threads=str(report.threads),
        load_rss_bytes=row.load_rss_bytes,
        resources=None,
        resources_reason="this kind of record has no power: run rfedge bench latency --resource-seconds",
    )


def _variant_speed(name: str, report: LatencyReport, variant: VariantResult, manifest_sha256: str) -> Speed:
    settings = variant.settings
    return Speed(
        bundle=BundleName(variant.policy, variant.precision, variant.size_bytes),
        record=name,
        label=variant.name,
        folder=variant.source,
        measured_at=report.measured_at,
        machine=report.machine,
        per_call_ms=variant.per_call_ms["total"],
        execute_steps=report.conditions.execute_steps,
        backend=settings.get("providers", "unknown"),
        threads=settings.get("threads", "unknown"),
        load_rss_bytes=variant.load_rss_bytes,
        resources=variant.resources,
        resources_reason="" if variant.resources is not None else "not asked for: rfedge bench latency --resource-seconds",
        manifest_sha256=manifest_sha256,
    )


def _one_per_machine(speeds: Sequence[Speed], own: tuple[str, str], policy: PolicyRecord) -> list[Speed]:
    """Return one speed a machine and backend: its own sweep's, else of the same manifest, folder, with power, the latest."""

    def rank(speed: Speed) -> tuple[bool, bool, bool, bool, str]:
        is_own, is_same = (speed.record, speed.label) == own, speed.manifest_sha256 == policy.manifest_sha256
        return is_own, is_same, speed.folder == policy.path, speed.resources is not None, speed.measured_at

    best: dict[tuple[Machine, str], Speed] = {}
    for speed in speeds:
        place = (speed.machine, speed.backend)
        if place not in best or rank(best[place]) < rank(speed):
            best[place] = speed
    return list(best.values())


def _note(speed: Speed | None, policy: PolicyRecord) -> str:
    if speed is None or speed.folder == policy.path:
        return ""
    if speed.manifest_sha256 == policy.manifest_sha256:
        return f"timed in {speed.record} as {speed.label!r}"
    where = "in another folder" if speed.folder else "in a folder that the record does not tell"
    return f"timed in {speed.record} as {speed.label!r}: a bundle of the same policy, precision and size {where}"
