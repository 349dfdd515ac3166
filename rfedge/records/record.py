"""Base of every part of a result document, and how one is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rfedge.errors import ArtifactError
from rfedge.io.atomic import atomic_file


class Record(BaseModel):
    """A part of a result: it never changes, and a field that nobody declared is an error.

    The order of the fields is the order in the document; those of a base class come first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def write(self, path: Path) -> None:
        """Write the document, indented, under a temporary name and rename it."""
        with atomic_file(path) as temporary:
            temporary.write_text(self.model_dump_json(indent=2) + "\n")


def first_fault(error: ValidationError) -> str:
    """Return the first thing that is wrong with a document, and where it stands: "stages.head: Field required"."""
    first = error.errors(include_url=False)[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))


R = TypeVar("R", bound=Record)


def parse_lines(kind: type[R], lines: Iterable[Mapping[str, Any]], path: Path, *, what: str) -> list[R]:
    """Return the lines of the journal at `path` as records; `what` is what its lines are called in errors."""
    try:
        return [kind.model_validate(line) for line in lines]
    except ValidationError:
        expected = "what `rfedge bench` writes"
        remedy = "Choose another --output."
        raise ArtifactError(str(path), got=f"a record that is no {what}", expected=expected, remedy=remedy) from None
