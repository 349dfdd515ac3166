"""What a report is made of, before anybody knows whether it becomes HTML or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeVar

__all__ = ["Cell", "Figure", "Part", "Picture", "Section", "Table", "Text", "missing", "slug", "titled"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of a table.

    Attributes:
        text: what is shown.
        reason: why there is nothing, or what must be said beside the number; becomes a footnote.
        heat: 0 to 1, shown as the strength of the background; None for none.
    """

    text: str
    reason: str = ""
    heat: float | None = None


def missing(reason: str) -> Cell:
    """Return the place of a number that nobody measured."""
    return Cell("-", reason)


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows; a plain string is a cell without more.

    Attributes:
        caption: what the numbers are, and of what.
        text_columns: how many of the first columns are words, not numbers.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    text_columns: int = 1

    def to_markdown(self) -> str:
        """Return the table with its caption above and its footnotes below."""
        notes = _Notes()
        lines = [_markdown_row([_in_cell(column) for column in self.columns]), _markdown_row(["---"] * len(self.columns))]
        for row in self.rows:
            cells = [_cell(cell) for cell in row]
            lines.append(
                _markdown_row([_in_cell(cell.text) + "".join(f" [{n}]" for n in notes.numbers(cell)) for cell in cells])
            )
        remarks = [f"[{number}] {_plain(reason)}  " for reason, number in notes.reasons.items()]
        return "\n".join([_plain(self.caption), "", *lines, *(["", *remarks] if remarks else [])])

    def to_html(self) -> str:
        """Return the table in a frame that scrolls sideways where the screen is narrow, and its footnotes."""
        notes = _Notes()
        head = "".join(
            f'<th scope="col"{"" if index < self.text_columns else _NUMBER}>{escape(column)}</th>'
            for index, column in enumerate(self.columns)
        )
        body = []
        for row in self.rows:
            cells = []
            for index, cell in enumerate(map(_cell, row)):
                marks = "".join(f'<sup title="{escape(cell.reason)}">{number}</sup>' for number in notes.numbers(cell))
                tag = 'th scope="row"' if index == 0 else "td"
                classes = "" if index < self.text_columns else _NUMBER
                heat = "" if cell.heat is None else f' style="--heat:{min(1.0, max(0.0, cell.heat)):.3f}" data-heat'
                cells.append(f"<{tag}{classes}{heat}>{escape(cell.text)}{marks}</{tag.split()[0]}>")
            body.append(f"<tr>{''.join(cells)}</tr>")
        remarks = "".join(f"<li value={number}>{escape(reason)}</li>" for reason, number in notes.reasons.items())
        return (
            # The caption stands outside the frame: there it wraps where the table scrolls.
            f'<p class="caption">{escape(self.caption)}</p><div class="scroll" tabindex="0" role="region" '
            f'aria-label="{escape(self.caption)}"><table><thead><tr>{head}</tr></thead><tbody>\n'
            + "\n".join(body)
            + "\n</tbody></table></div>"
            + (f'<ol class="notes">{remarks}</ol>' if remarks else "")
        )


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing with the words under it; `svg` is markup that `chart.py` made, with every text in it escaped."""

    svg: str
    caption: str
    legend: Sequence[tuple[str, str]] = ()  # markup of a key from `chart.py`, and its name

    def to_html(self) -> str:
        """Return the figure with its legend."""
        keys = "".join(f"<li>{key}{escape(name)}</li>" for key, name in self.legend)
        legend = f'<ul class="legend">{keys}</ul>' if keys else ""
        return f"<figure>{self.svg}{legend}<figcaption>{escape(self.caption)}</figcaption></figure>"


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of the page itself, as base64."""

    media_type: str
    base64: str
    alt: str

    def to_html(self) -> str:
        """Return the picture with its name."""
        source = f"data:{self.media_type};base64,{self.base64}"
        return f'<figure><img src="{source}" alt="{escape(self.alt)}"><figcaption>{escape(self.alt)}</figcaption></figure>'


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph, or a list where there are `items`; an item may be a link (text, address)."""

    text: str
    items: Sequence[str | tuple[str, str]] = ()

    def to_html(self) -> str:
        """Return the paragraph and its list."""
        items = "".join(f"<li>{_item(item)}</li>" for item in self.items)
        return (f"<p>{escape(self.text)}</p>" if self.text else "") + (f"<ul>{items}</ul>" if items else "")

    def to_markdown(self) -> str:
        """Return the paragraph and its list."""
        items = [
            f"- {_plain(item)}" if isinstance(item, str) else f"- [{_plain(item[0])}]({item[1]})" for item in self.items
        ]
        return "\n".join([*([_plain(self.text), ""] if self.text else []), *items]).strip()


Part = Table | Figure | Picture | Text


@dataclass(frozen=True, slots=True)
class Section:
    """A headed piece of the page; figures and pictures that follow each other stand side by side where there is room."""

    title: str
    parts: Sequence[Part]


def slug(text: str) -> str:
    """Return letters, digits and single dashes.

    >>> slug("Success, task by task")
    'success-task-by-task'
    """
    return "-".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())


def titled(kind: str, records: Sequence[tuple[str, T]]) -> list[tuple[str, T]]:
    """Return a heading for each record of one kind: the kind alone, or with the record's name where there are several."""
    return [(kind if len(records) == 1 else f"{kind}: {name}", record) for name, record in records]


_NUMBER = ' class="number"'


class _Notes:
    """Footnotes of one table: the same reason has the same number."""

    def __init__(self) -> None:
        self.reasons: dict[str, int] = {}

    def numbers(self, cell: Cell) -> list[int]:
        if not cell.reason:
            return []
        return [self.reasons.setdefault(cell.reason, len(self.reasons) + 1)]


def _cell(cell: str | Cell) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell


def _item(item: str | tuple[str, str]) -> str:
    if isinstance(item, str):
        return escape(item)
    text, address = item
    return f'<a href="{escape(address)}" rel="noreferrer">{escape(text)}</a>'


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Return the text on one line and with what HTML or Markdown would read as markup escaped."""
    line = " ".join(text.split())
    # A bracket alone is an interval; only with one of these behind it would it be a link.
    brackets = "[" if any(sign in line for sign in ("](", "][", "]:")) else ""
    for sign in ("\\", "`", "*", "_", "<", "#", *brackets):
        line = line.replace(sign, f"\\{sign}")
    return line


def _in_cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")
