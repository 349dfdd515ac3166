"""Finds the records in files and folders, and says of everything else why it was left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from rfedge.benchmarks.success.chain_report import ChainReport
from rfedge.benchmarks.success.report import SuccessReport
from rfedge.benchmarks.success.sweep_report import SweepReport
from rfedge.errors import ArtifactError
from rfedge.io.disk import read_json

__all__ = ["MIXED_FORMAT", "Collection", "Found", "LeftOut", "collect"]

T = TypeVar("T", bound=BaseModel)

# What the search of a mixed bundle leaves in it has no format of its own; these of its keys tell it.
MIXED_FORMAT: Final = "rfedge-mixed"
_MIXED_KEYS: Final = {"budget_metric", "blocks", "time_ratios", "uniform_metrics"}
# format of a document -> where its class is. They are imported when one is met: some need optional libraries.
_CLASSES: Final = {
    "rfedge-ablations": ("rfedge.benchmarks.studies.ablations", "AblationsReport"),
    "rfedge-bundle": ("rfedge.bundle.artifact", "Manifest"),
    "rfedge-chains": ("rfedge.benchmarks.success.chain_report", "ChainReport"),
    "rfedge-environment-speed": ("rfedge.benchmarks.latency.environment_speed", "EnvironmentSpeedReport"),
    "rfedge-expert-success": ("rfedge.benchmarks.success.expert_success", "ExpertSuccessReport"),
    "rfedge-head-speed": ("rfedge.benchmarks.studies.head_speed", "HeadSpeedReport"),
    "rfedge-import-memory": ("rfedge.benchmarks.studies.import_memory", "ImportMemoryReport"),
    "rfedge-int8-ranges": ("rfedge.benchmarks.studies.int8_ranges_report", "Int8RangesReport"),
    "rfedge-latency": ("rfedge.benchmarks.records.schema", "LatencyReport"),
    "rfedge-looks": ("rfedge.benchmarks.success.looks", "LooksReport"),
    "rfedge-loop": ("rfedge.benchmarks.latency.loop_report", "LoopReport"),
    MIXED_FORMAT: ("rfedge.export.mixed.record", "SearchRecord"),
    "rfedge-peers": ("rfedge.benchmarks.latency.peers", "PeersReport"),
    "rfedge-precisions": ("rfedge.benchmarks.success.precision_records", "PrecisionsReport"),
    "rfedge-real-size": ("rfedge.benchmarks.studies.real_size", "RealSizeReport"),
    "rfedge-rollouts": ("rfedge.runtimes.rollout.rollouts", "RolloutReport"),
    "rfedge-server": ("rfedge.benchmarks.latency.server", "ServerReport"),
    "rfedge-success": ("rfedge.benchmarks.success.report", "SuccessReport"),
    "rfedge-sweep": ("rfedge.benchmarks.success.sweep_report", "SweepReport"),
}
_DEEPEST: Final = 3  # a document that only holds records, such as that of `make pipeline`


@dataclass(frozen=True, slots=True)
class Found:
    """A record, its format, and the name it is shown under: never the whole path, which is nobody's business."""

    name: str
    form: str
    record: BaseModel


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or a part of it that does not appear, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Collection:
    """Everything that was found, in the order of the arguments and names."""

    found: tuple[Found, ...]
    left_out: tuple[LeftOut, ...]

    def of(self, kind: type[T]) -> list[tuple[str, T]]:
        """Return the records of one class with their names."""
        return [(one.name, one.record) for one in self.found if isinstance(one.record, kind)]

    def of_format(self, form: str) -> list[tuple[str, BaseModel]]:
        """Return the records of one format, whose class may need an optional library, with their names."""
        return [(one.name, one.record) for one in self.found if one.form == form]


def collect(paths: Sequence[Path], *, on_file: Callable[[int, int], None] = lambda *_: None) -> Collection:
    """Read every JSON file that is named, and every one in the folders that are named, at any depth.

    A file in a folder that is no record is left out with the reason; the same content under two names is taken once.

    Args:
        paths: files and folders.
        on_file: told (files read, files in all).

    Raises:
        ArtifactError: a path does not exist, a file that was named is no record, or there is no record at all.
    """
    found: list[Found] = []
    left_out: list[LeftOut] = []
    seen: dict[str, str] = {}
    files = [(path, name, file) for path in paths for name, file in _files(path)]
    for number, (path, name, file) in enumerate(files, start=1):
        try:
            parts = list(_records(name, _parse(file)))
        except ValueError as error:
            parts = [LeftOut(name, str(error))]
        if path == file and not any(isinstance(part, Found) for part in parts):
            reasons = "; ".join(part.reason for part in parts if isinstance(part, LeftOut))
            remedy = "Name files that the bench commands wrote."
            raise ArtifactError(str(path), got=reasons, expected="a record of rfedge bench", remedy=remedy)
        for part in parts:
            if isinstance(part, LeftOut):
                left_out.append(part)
                continue
            content = part.record.model_dump_json()
            if content in seen:
                left_out.append(LeftOut(part.name, f"the same record as {seen[content]}"))
            else:
                seen[content] = part.name
                found.append(part)
        on_file(number, len(files))
    if not found:
        raise ArtifactError(
            ", ".join(map(str, paths)) or "records",
            got="no record",
            expected="JSON files of rfedge bench",
            remedy="Run rfedge bench success, sweep or latency first, with --output.",
        )
    return _without_parts(found, left_out)


def _without_parts(found: Sequence[Found], left_out: Sequence[LeftOut]) -> Collection:
    """Leave out what another record holds: a sweep its success and latency, a success the chains of its rows."""
    parts: list[tuple[str, BaseModel]] = []
    for one in found:
        if isinstance(one.record, SweepReport):
            parts += [(one.name, one.record.success), (one.name, one.record.latency)]
    successes = [(one.name, one.record) for one in found if isinstance(one.record, SuccessReport)]
    successes += [(name, part) for name, part in parts if isinstance(part, SuccessReport)]
    kept, rest = [], list(left_out)
    for one in found:
        holder = next((name for name, part in parts if part == one.record), None)
        if isinstance(one.record, ChainReport):
            holder = next((name for name, success in successes if _holds(success, one.record)), None)
        if holder is None:
            kept.append(one)
        else:
            rest.append(LeftOut(one.name, f"a part of {holder}"))
    return Collection(tuple(kept), tuple(rest))


def _holds(success: SuccessReport, report: ChainReport) -> bool:
    """Whether a row is made of these chains: the interval of their average length is drawn from every single one."""
    return any(
        row.chains is not None
        and (row.chains.average_length, row.chains.tasks) == (report.average_length, report.tasks)
        and row.scene == report.conditions.scene
        for row in success.rows
    )


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if not path.exists():
        raise ArtifactError(str(path), got="no such file or folder", expected="records as JSON", remedy="Check the name.")
    if path.is_file():
        yield _shown(Path(path.name)), path
        return
    for file in sorted(path.rglob("*.json")):
        if file.is_file():
            yield _shown(path.resolve().name / file.relative_to(path)), file


def _shown(name: Path) -> str:
    """Return the name as text that can be written: file systems allow bytes that are none."""
    return name.as_posix().encode("utf-8", "replace").decode("utf-8")


def _parse(file: Path) -> Any:
    try:
        return read_json(file)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("no JSON document") from error


def _records(name: str, document: Any, depth: int = 0) -> Iterator[Found | LeftOut]:
    """Yield the record that a document is, or those that it holds."""
    if not isinstance(document, dict):
        if depth == 0:
            yield LeftOut(name, "no JSON object")
        return
    form = MIXED_FORMAT if document.keys() >= _MIXED_KEYS else document.get("format")
    if isinstance(form, str) and form.startswith("rfedge-"):
        yield _read(name, form, document)
        return
    inside = 0
    if depth < _DEEPEST:
        for key, value in document.items():
            for part in _records(f"{name} › {key}", value, depth + 1):
                inside += 1
                yield part
    if depth == 0 and not inside:
        yield LeftOut(name, "no record in it: no format that begins with rfedge-")


def _read(name: str, form: str, document: dict[str, Any]) -> Found | LeftOut:
    if form not in _CLASSES:
        return LeftOut(name, f"format {form!r}, which this report does not know")
    module, kind = _CLASSES[form]
    try:
        model: type[BaseModel] = getattr(import_module(module), kind)
    except ImportError as error:
        return LeftOut(name, f"format {form!r} needs a library that is not installed here: {error.name or error}")
    try:
        return Found(name, form, model.model_validate(document))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "document"
        return LeftOut(name, f"format {form!r} of another version: {place}: {first['msg']}")
