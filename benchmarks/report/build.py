"""From files to a page: collect the records, join them, write HTML and Markdown."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rfedge.benchmarks.records.quoted import quoted_baselines
from rfedge.benchmarks.report.collect import Collection, collect
from rfedge.benchmarks.report.document import Part, Picture, Section, Text
from rfedge.benchmarks.report.first_table import Machines, bundle_tables, first_tables, sentence
from rfedge.benchmarks.report.joined import JoinedRow, join
from rfedge.benchmarks.report.page import render_page
from rfedge.benchmarks.report.provenance import missing_facts, missing_section, quoted_section, records_section
from rfedge.benchmarks.report.speed_part import speed_sections
from rfedge.benchmarks.report.success_part import drawings, expert_section, success_sections
from rfedge.benchmarks.report.system_part import system_sections
from rfedge.errors import ArtifactError, ConfigError
from rfedge.io.atomic import atomic_file
from rfedge.io.disk import read_file

Progress = Callable[[str, int, int], None]

__all__ = ["Report", "ReportPlan", "build_report"]

# the first bytes of a file -> what a browser is told that it is
_SIGNATURES: Final = {
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"\x89PNG\r\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
}


@dataclass(frozen=True, slots=True)
class ReportPlan:
    """What to write.

    Attributes:
        sources: files and folders with records.
        pictures: GIF, PNG or JPEG files, and folders of GIFs.
        title: of the page.
    """

    sources: tuple[Path, ...]
    pictures: tuple[Path, ...] = ()
    title: str = "rfedge: measured"


@dataclass(frozen=True, slots=True)
class Report:
    """A finished report.

    Attributes:
        sentence: what was measured.
        rows: of the first table.
        missing: what nobody measured, in words.
    """

    html: str
    markdown: str
    sentence: str
    collection: Collection
    rows: tuple[JoinedRow, ...]
    missing: tuple[str, ...]
    num_pictures: int

    def write(self, output: Path, markdown: Path | None = None) -> None:
        """Write the page, and the Markdown where a file is named.

        Raises:
            ConfigError: one of them is a folder.
        """
        for path in (output, markdown):
            if path is not None and path.is_dir():
                raise ConfigError(str(path), got="a folder", expected="a file", remedy="Add a file name.")
        for path, text in ((output, self.html), (markdown, self.markdown)):
            if path is not None:
                with atomic_file(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")


def build_report(plan: ReportPlan, *, progress: Progress = lambda *_: None) -> Report:
    """Read, join and render.

    Args:
        plan: what to write.
        progress: told (stage, done, total).

    Raises:
        ArtifactError: a file is missing or no record, there is no record, or a picture is none.
    """
    collection = collect(plan.sources, on_file=lambda done, total: progress("records", done, total))
    pictures = [_picture(path) for path in _picture_files(plan.pictures)]
    rows = join(collection)
    machines = Machines()
    told = sentence(rows, collection, machines)
    missing = missing_facts(collection, rows, len(pictures))
    top: list[Part] = [Text(told)]
    joined, speed_alone = first_tables(rows, machines)
    top += [part for part in (joined, *drawings(rows, machines), speed_alone) if part is not None]
    sections = [Section("Summary", top), *success_sections(collection)]
    if pictures:
        sections.append(Section("Rollouts", pictures))
    sections += speed_sections(collection, machines)
    sections += system_sections(collection, machines)
    experts = expert_section(collection)
    sections += [] if experts is None else [experts]
    quoted = quoted_section(quoted_baselines())
    records = records_section(collection, machines)
    gaps = missing_section(collection, missing)
    sections += [quoted, records, gaps]
    return Report(
        html=render_page(plan.title, sections),
        markdown=_markdown(plan.title, told, rows, machines, [quoted, records, gaps]),
        sentence=told,
        collection=collection,
        rows=tuple(rows),
        missing=missing,
        num_pictures=len(pictures),
    )


def _markdown(title: str, told: str, rows: Sequence[JoinedRow], machines: Machines, sections: Sequence[Section]) -> str:
    """Return one table for each bundle, then what is quoted, where numbers come from, and what is missing."""
    blocks = [f"# {Text(title).to_markdown()}", Text(told).to_markdown()]
    for label, table in bundle_tables(rows, machines):
        blocks += [f"## {Text(label).to_markdown()}", table.to_markdown()]
    for section in sections:
        blocks.append(f"## {section.title}")
        blocks += [
            part.to_markdown() for part in section.parts if not isinstance(part, Picture) and hasattr(part, "to_markdown")
        ]
    return "\n\n".join(blocks) + "\n"


def _picture_files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.rglob("*.gif")) if path.is_dir() else [path]
        if not inside:
            raise ArtifactError(str(path), got="no GIF in it", expected="GIF files", remedy="Name files instead.")
        files += inside
    return files


def _picture(path: Path) -> Picture:
    try:
        content = read_file(path)
    except OSError as error:
        raise ArtifactError(
            str(path), got=error.strerror, expected="a GIF, PNG or JPEG file", remedy="Check the name."
        ) from error
    media_type = next((name for signature, name in _SIGNATURES.items() if content.startswith(signature)), None)
    if media_type is None:
        raise ArtifactError(
            str(path), got="another kind of file", expected="a GIF, PNG or JPEG file", remedy="Name a picture."
        )
    return Picture(media_type, base64.b64encode(content).decode("ascii"), path.stem)
