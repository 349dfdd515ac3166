"""Markdown text of records, and the HTML page of a Markdown text."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final, Protocol

from markdown_it import MarkdownIt
from markdown_it.token import Token

Cell = str | tuple[str, str]  # a text, and its footnote where there is one
_STYLE: Final = Path(__file__).with_name("style.css")
# A browser loads nothing from anywhere: a mistake here cannot make the page call somebody.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_SOLVED: Final = re.compile(r"(\d+)/(\d+)\Z")


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture file."""

    content: bytes
    media_type: str
    caption: str

    def to_html(self) -> str:
        source = f"data:{self.media_type};base64,{base64.b64encode(self.content).decode('ascii')}"
        caption = escape(self.caption)
        return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


class Picture(Protocol):
    """A part that the page shows and the Markdown file leaves out."""

    def to_html(self) -> str:
        """Return it as an element."""


@dataclass(frozen=True, slots=True)
class Table:
    """Texts with their caption above and footnotes below; numbers, behind `text_columns`, stand to the right."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text_columns: int = 1

    def numbered(self) -> tuple[list[list[str]], list[str]]:
        """Return the rows with numbers for their footnotes, and these; equal footnotes share their number."""
        notes: dict[str, int] = {}

        def written(cell: Cell) -> str:
            text, note = (cell, "") if isinstance(cell, str) else cell
            return text + (f" [{notes.setdefault(note, len(notes) + 1)}]" if note else "")

        rows = [[written(cell) for cell in row] for row in self.rows]
        return rows, [f"[{number}] {note}" for note, number in notes.items()]

    def to_markdown(self) -> str:
        rows, notes = self.numbered()
        lines = grid([*map(plain, self.columns)], [[*map(plain, row)] for row in rows], self.text_columns)
        return "\n\n".join(filter(None, (plain(self.caption), lines, "  \n".join(map(plain, notes)))))


Part = str | Table | Picture  # a string is Markdown


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it."""

    title: str
    parts: Sequence[Part]

    def to_markdown(self) -> str:
        texts = (part.to_markdown() if isinstance(part, Table) else part for part in self.parts)
        return "\n\n".join([f"## {plain(self.title)}", *(text for text in texts if isinstance(text, str))])


def plain(text: str) -> str:
    """Return text on one line, with what HTML or Markdown would read as markup escaped."""
    line = " ".join(text.split())
    # A bracket alone is an interval; only with one of these behind it would it be a link.
    brackets = "[" if any(sign in line for sign in ("](", "][", "]:")) else ""
    for sign in ("\\", "`", "*", "_", "<", "#", "|", *brackets):
        line = line.replace(sign, f"\\{sign}")
    return line


def grid(columns: Sequence[str], rows: Sequence[Sequence[object]], text_columns: int | None = None) -> str:
    """Return a Markdown table of cells that are Markdown; numbers, behind `text_columns`, stand to the right."""
    rule = ["---" if text_columns is None or place < text_columns else "---:" for place in range(len(columns))]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (columns, rule, *rows))


def missing(reason: str) -> Cell:
    """Return the place of a number that nobody measured."""
    return "-", reason


def bracketed(value: Mapping[str, Any], digits: int = 2) -> str:
    """Return a value with its 95 % interval, such as "2.31 [2.02, 2.60]"."""
    number, low, high = (f"{value[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{number} [{low}, {high}]"


def interval(value: Mapping[str, Any]) -> str:
    """Return a mean with its 95 % interval and the number of samples, such as "2.31 [2.02, 2.60], n = 60"."""
    if value["low"] == value["high"]:  # an interval without width says that the samples agree, not that the mean is known
        return f"{value['value']:.2f}, n = {value['n']}"
    return f"{bracketed(value)}, n = {value['n']}"


def percent(value: Mapping[str, Any]) -> str:
    """Return a share with its 95 % interval in per cent, such as "85 % [80, 89]"."""
    return f"{100 * value['value']:.0f} % [{100 * value['low']:.0f}, {100 * value['high']:.0f}]"


def share(value: Mapping[str, Any]) -> str:
    """Return `percent`, with the number of samples where there is one, such as "85 % [80, 89], n = 200"."""
    return percent(value) + (f", n = {value['n']}" if "n" in value else "")


def times_faster(ratio: Mapping[str, float] | None, reason: str) -> Cell:
    """Return a ratio with its 95 % interval, such as "4.62x [4.55, 4.70]"."""
    return missing(reason) if ratio is None else f"{ratio['value']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def milliseconds(value: float) -> str:
    """Return milliseconds with three digits: 0.0125, 1.25, 12.5 or 125."""
    return f"{value:.{4 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def percentiles(summary: Mapping[str, float] | None, reason: str = "") -> list[Cell]:
    """Return p50, p90 and p99 in milliseconds."""
    if summary is None:
        return [missing(reason)] * 3
    return [milliseconds(summary[level]) for level in ("p50", "p90", "p99")]


def megabytes(value: int | None, reason: str = "") -> Cell:
    """Return decimal megabytes."""
    return missing(reason) if value is None else f"{value / 1e6:.1f}"


def to_page(title: str, sections: Sequence[Section]) -> str:
    """Return one HTML file that loads nothing; the first section is the first screen and has no heading."""
    links, body = [], []
    for number, section in enumerate(sections):
        pieces, figures = [f"<h2>{escape(section.title)}</h2>"] if number else [], list[str]()
        for part in (*section.parts, ""):
            if not isinstance(part, (str, Table)):
                figures.append(part.to_html())
                continue
            if figures:  # those that follow each other stand side by side where there is room
                pieces.append(f'<div class="figures">{"".join(figures)}</div>')
                figures = []
            pieces.append(_html(part if isinstance(part, str) else part.to_markdown()))
        body.append(f'<section id="s{number}">{"".join(pieces)}</section>')
        links.append(f'<li><a href="#s{number}">{escape(section.title)}</a></li>')
    body.insert(1, f'<nav aria-label="Sections"><ul>{"".join(links[1:])}</ul></nav>')
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escape(title)}</h1></header>\n{chr(10).join(body)}\n</main>\n</body>\n</html>\n"
    )


def _html(markdown: str) -> str:
    """Render Markdown; tables scroll sideways in frames named after their captions, shares "n/m" get a background."""
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens: list[Token] = []
    for token in renderer.parse(markdown):
        if token.type == "table_open":
            caption = ""
            if len(tokens) > 2 and tokens[-1].type == "paragraph_close":
                tokens[-3].attrSet("class", "caption")
                caption = escape("".join(child.content for child in tokens[-2].children or ()))
            frame = f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
            tokens.append(Token("html_block", "", 0, content=frame))
        if token.type == "inline" and token.content.startswith("[1] "):
            tokens[-1].attrSet("class", "notes")
        if token.type == "inline" and tokens[-1].type == "td_open" and (solved := _SOLVED.match(token.content)):
            heat = int(solved[1]) / max(1, int(solved[2]))
            tokens[-1].attrSet("style", f"{tokens[-1].attrs.get('style', '')};--heat:{heat:.3f}")
            tokens[-1].attrSet("data-heat", "")
        tokens.append(token)
        if token.type == "table_close":
            tokens.append(Token("html_block", "", 0, content="</div>\n"))
    return str(renderer.renderer.render(tokens, renderer.options, {}))
