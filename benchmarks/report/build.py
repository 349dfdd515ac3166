"""From files to a page: collect the records, join them, write Markdown once and HTML from it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rfedge.benchmarks.report.bundles import Names, Row, advice, bundle_rows, bundle_tables, plots
from rfedge.benchmarks.report.collect import Collection, Found, collect
from rfedge.benchmarks.report.markdown import Cell, Figure, Part, Section, Table, missing, plain, to_page
from rfedge.benchmarks.report.plots import save_plots
from rfedge.benchmarks.report.sections import record_sections
from rfedge.errors import ArtifactError, ConfigError
from rfedge.io.atomic import atomic_file
from rfedge.io.disk import read_file
from rfedge.io.plotting import check_matplotlib
from rfedge.jobs.progress import StageProgress

_QUOTED: Final = Path(__file__).with_name("quoted_baselines.json")

# the first bytes of a picture -> its media type
_SIGNATURES: Final = {
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"\x89PNG\r\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
}
# formats of which one should be there -> what is missing without them, and what measures it
_WANTED: Final = (
    (("rfedge-success", "rfedge-sweep"), "success of a policy: rfedge bench success"),
    (("rfedge-latency", "rfedge-sweep"), "latency beside PyTorch and a noise floor: rfedge bench latency"),
    (("rfedge-mixed",), "what int8 does block by block: name a mixed bundle's folder"),
    (("rfedge-peers",), "other runtimes on the same policy: rfedge bench latency --isolate"),
)


@dataclass(frozen=True, slots=True)
class Report:
    html: str
    markdown: str
    sentence: str  # which bundle to put on the robot and why
    collection: Collection
    rows: tuple[Row, ...]
    missing: tuple[str, ...]  # what nobody measured, in words
    num_pictures: int

    def write(self, output: Path, markdown: Path | None = None) -> None:
        """Write the page, and the Markdown where a file is named. Raises ConfigError if one of them is a folder."""
        for path in (output, markdown):
            if path is not None and path.is_dir():
                raise ConfigError(str(path), got="a folder", expected="a file", remedy="Add a file name.")
        for path, text in ((output, self.html), (markdown, self.markdown)):
            if path is not None:
                with atomic_file(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")


def build_report(
    sources: Sequence[Path],
    pictures: Sequence[Path] = (),
    title: str = "rfedge: measured",
    *,
    progress: StageProgress = lambda *_: None,
) -> Report:
    """Read records in files and folders, join and render them; `pictures` are GIF, PNG or JPEG files, or folders of GIFs.

    Raises:
        ArtifactError: a file is missing or no record, there is no record, or a picture is none.
        BackendUnavailableError: matplotlib is not installed.
    """
    check_matplotlib("a report")
    collection = collect(sources, on_file=lambda done, total: progress("records", done, total))
    shown = [_picture(path) for path in _picture_files(pictures)]
    names = Names()
    rows = bundle_rows(collection, names)
    message = advice(rows, names)
    sections = [Section("Summary", [*message, *plots(rows), *bundle_tables(rows, names)])]
    sections += [Section("Rollouts", shown)] if shown else []
    sections += record_sections(collection, names)
    absent = _missing(collection, rows, len(shown))
    sections += [_quoted(), _records(collection, names), _gaps(collection, absent)]
    markdown = "\n\n".join([f"# {plain(title)}", *(section.to_markdown() for section in sections)]) + "\n"
    html = to_page(title, sections)
    sentence = re.sub(r"\*\*|\\(?=\W)", "", message[0])  # without what Markdown reads
    return Report(html, markdown, sentence, collection, tuple(rows), absent, len(shown))


def plot_record(form: str, document: dict[str, Any], path: Path) -> None:
    """Plot one record's success over time and steps per call, as the report does, to a picture file.

    Raises BackendUnavailableError if matplotlib is not installed.
    """
    save_plots(plots(bundle_rows(Collection([Found(path.stem, form, document)], []), Names())), path)


def _picture_files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.rglob("*.gif")) if path.is_dir() else [path]
        if not inside:
            raise ArtifactError(str(path), got="no GIF in it", expected="GIF files", remedy="Name files instead.")
        files += inside
    return files


def _picture(path: Path) -> Figure:
    expected = "a GIF, PNG or JPEG file"
    try:
        content = read_file(path)
    except OSError as error:
        raise ArtifactError(str(path), got=error.strerror, expected=expected, remedy="Check the name.") from error
    media_type = next((name for signature, name in _SIGNATURES.items() if content.startswith(signature)), None)
    if media_type is None:
        raise ArtifactError(str(path), got="another kind of file", expected=expected, remedy="Name a picture.")
    return Figure(content, media_type, path.stem)


def _records(collection: Collection, names: Names) -> Section:
    unknown = missing("this kind of record does not tell")
    rows: list[list[Cell]] = []
    for one in collection.found:
        document = one.document
        commit, versions = document.get("commit"), document.get("versions")
        rows.append(
            [
                one.name,
                one.form,
                document.get("measured_at", unknown),
                unknown if commit is None else commit[:12] + ("-dirty" if commit.endswith("-dirty") else ""),
                names.mark(document["machine"]) if "machine" in document else unknown,
                ", ".join(f"{name} {version}" for name, version in versions.items()) if versions else unknown,
            ]
        )
    columns = ["record", "format", "measured at", "commit", "machine", "versions"]
    places: list[list[Cell]] = []
    for machine in names.machines:
        memory, cores = (
            f"{machine['memory_bytes'] / 2**30:.1f}",
            f"{machine['usable_cores']} of {machine['physical_cores'] or '?'}",
        )
        facts = (machine["cpu"], cores, memory, ", ".join(machine["cpu_flags"]) or "-", machine["governor"] or "-")
        places.append([names.mark(machine), *facts, machine["system"]])
    heads = ["mark", "processor", "cores used", "memory GiB", "instructions", "governor", "system"]
    parts: list[Part] = [Table("Where every number on this page comes from.", columns, rows, len(columns))]
    parts += [Table("Machines.", heads, places, len(heads))] if places else []
    return Section("Records and machines", parts)


def quoted_baselines() -> dict[str, Any]:
    """Return published numbers on CALVIN: what each paper printed, and where."""
    quoted: dict[str, Any] = json.loads(_QUOTED.read_bytes())
    return quoted


def _quoted() -> Section:
    """Published numbers, marked as what they are."""
    quoted, absent = quoted_baselines(), missing("not printed in that table")
    rows: list[list[Cell]] = []
    for row in quoted["rows"]:
        rates = [f"{rate:.3f}" for rate in row["rates"]] if "rates" in row else [absent] * 5
        gflops = f"{row['llm_gflops']:.1f}" if "llm_gflops" in row else absent
        facts = (row["method"], row["training"], row["test"])
        rows.append([*facts, f"{row['average_length']:.2f}", *rates, gflops, f"{row['source']}, {row['place']}"])
    columns = ["method (quoted)", "trained on", "tested on", "average length", *"12345", "LLM GFLOPs", "source"]
    caution = (
        "Quoted, not measured here: numbers that papers print for CALVIN, with its scenes, its renderer and its human "
        "demonstrations. They are no baseline for numbers from PlayTable, which is another simulator."
    )
    sources = "\n".join(f"- [{plain(name + ': ' + one['title'])}]({one['url']})" for name, one in quoted["sources"].items())
    caption = "Quoted from papers: share of 1000 chains with at least so many tasks solved."
    return Section("Quoted baselines", [caution, Table(caption, columns, rows, 3), sources])


def _missing(collection: Collection, rows: Sequence[Row], num_pictures: int) -> tuple[str, ...]:
    """Return what nobody measured: kinds of record, then halves of rows."""
    forms = {one.form for one in collection.found}
    wanted = [words for needed, words in _WANTED if not forms.intersection(needed)]
    timed = [row.speed for row in rows if row.speed]
    if timed and not any((speed.resources or {}).get("power") for speed in timed):
        wanted.append("power: rfedge bench latency --resource-seconds")
    wanted += [] if num_pictures else ["pictures of rollouts: --gif"]
    halves = [
        f"{row.name}: no {'success' if row.success is None else 'latency'}"
        for row in rows
        if not (row.success and row.speed)
    ]
    return (*wanted, *dict.fromkeys(halves))


def _gaps(collection: Collection, absent: Sequence[str]) -> Section:
    parts: list[Part] = ["Not in the records:" if absent else "Every kind of record is here, and every row has both halves."]
    parts += ["\n".join(f"- {plain(one)}" for one in absent)] if absent else []
    if collection.left_out:
        parts += ["Left out:", "\n".join(f"- {plain(f'{name}: {reason}')}" for name, reason in collection.left_out)]
    return Section("What is missing", parts)
