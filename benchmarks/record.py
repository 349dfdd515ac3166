"""What the parts of every result document have in common, and how a document is written."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from rfedge.atomic import atomic_file

__all__ = ["Record"]


class Record(BaseModel):
    """A part of a result: it never changes, and a field that nobody declared is an error.

    The order of the fields is the order in the document; those of a base class come first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def write(self, path: Path) -> None:
        """Write the document, indented, under a temporary name and rename it."""
        with atomic_file(path) as temporary:
            temporary.write_text(self.model_dump_json(indent=2) + "\n")
