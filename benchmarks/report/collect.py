"""Finds records in files and folders, and says of everything else why it was left out.

A record is read as data: records of older versions and of measurements that are gone stay readable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from rfedge.errors import ArtifactError
from rfedge.io.disk import read_json
from rfedge.jobs.progress import Count

T = TypeVar("T")
# The search of a mixed bundle leaves a file without a format; it has these keys.
MIXED_FORMAT: Final = "rfedge-mixed"
_MIXED_KEYS: Final = {"budget_metric", "blocks", "time_ratios", "uniform_metrics"}
_DEEPEST: Final = 3  # a document that only holds records, such as that of `make pipeline`


@dataclass(frozen=True, slots=True)
class Found:
    """A record and the name it is shown under: never the whole path, which is nobody's business."""

    name: str
    form: str
    document: dict[str, Any]


@dataclass(slots=True)
class Collection:
    """Records in the order of arguments and names, and (name, reason) of what does not appear."""

    found: list[Found]
    left_out: list[tuple[str, str]]

    def of(self, *forms: str) -> list[Found]:
        return [one for one in self.found if one.form in forms]

    def read(self, one: Found, parts: Iterable[T]) -> list[T]:
        """Return the parts of a record; one of another version has none, and is left out with what it lacks."""
        try:
            return list(parts)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            self.left_out.append((one.name, f"format {one.form!r} of another version: {type(error).__name__}: {error}"))
            self.found = [other for other in self.found if other is not one]
            return []


def collect(paths: Sequence[Path], *, on_file: Count = lambda *_: None) -> Collection:
    """Read every JSON file that is named or lies in a folder that is; what is no record is left out, unless it was named.

    Raises ArtifactError if a path does not exist, a file that was named is no record, or there is no record at all.
    """
    collection = Collection([], [])
    files = [(path, name, file) for path in paths for name, file in _files(path)]
    for number, (path, name, file) in enumerate(files, start=1):
        try:
            parts = list(_records(name, read_json(file)))
            reason = "no record in it: no format that begins with rfedge-"
        except OSError as error:
            parts, reason = [], f"cannot be read: {error.strerror}"
        except ValueError:
            parts, reason = [], "no JSON document"
        if not parts:
            collection.left_out.append((name, reason))
            if path == file:
                remedy = "Name files that the bench commands wrote."
                raise ArtifactError(str(path), got=reason, expected="a record of rfedge bench", remedy=remedy)
        collection.found += parts
        on_file(number, len(files))
    if not collection.found:
        subject, remedy = (
            ", ".join(map(str, paths)) or "records",
            "Run rfedge bench success or latency first, with --output.",
        )
        raise ArtifactError(subject, got="no record", expected="JSON files of rfedge bench", remedy=remedy)
    return _without_parts(collection)


def _without_parts(collection: Collection) -> Collection:
    """Leave out copies, and what another record holds: a sweep its success and latency, a success the chains of a row."""
    kept: list[Found] = []
    sweeps = collection.of("rfedge-sweep")
    inside = [(part, one.name) for one in sweeps for part in (one.document.get("success"), one.document.get("latency"))]
    successes = [(one.document, one.name) for one in collection.of("rfedge-success")]
    successes += [(part, name) for part, name in inside if isinstance(part, dict) and "rows" in part]
    for one in collection.found:
        copy = next((other.name for other in kept if other.document == one.document), None)
        holder = next((name for part, name in inside if part == one.document), None)
        if one.form == "rfedge-chains":
            holder = next((name for part, name in successes if _holds(part, one.document)), None)
        if copy is None and holder is None:
            kept.append(one)
        else:
            collection.left_out.append((one.name, f"the same record as {copy}" if copy else f"a part of {holder}"))
    return Collection(kept, collection.left_out)


def _holds(success: dict[str, Any], chains: dict[str, Any]) -> bool:
    """Whether a row is made of these chains: the interval of their average length depends on every single one."""
    rows = [row for row in success.get("rows", ()) if row.get("chains")]
    return any(all(row["chains"].get(key) == chains.get(key) for key in ("average_length", "tasks")) for row in rows)


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if not path.exists():
        raise ArtifactError(str(path), got="no such file or folder", expected="records as JSON", remedy="Check the name.")
    inside = [path] if path.is_file() else sorted(file for file in path.rglob("*.json") if file.is_file())
    for file in inside:
        name = Path(path.name) if file == path else path.resolve().name / file.relative_to(path)
        # File systems allow names that are no text.
        yield name.as_posix().encode("utf-8", "replace").decode("utf-8"), file


def _records(name: str, document: Any, depth: int = 0) -> Iterator[Found]:
    """Yield the record that a document is, or those that it holds."""
    if not isinstance(document, dict):
        return
    form = MIXED_FORMAT if document.keys() >= _MIXED_KEYS else document.get("format")
    if isinstance(form, str) and form.startswith("rfedge-"):
        yield Found(name, form, document)
    elif depth < _DEEPEST:
        for key, value in document.items():
            yield from _records(f"{name} › {key}", value, depth + 1)
