"""The page: one HTML file that loads nothing, with its style inside."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from rfedge.benchmarks.report.document import Figure, Part, Picture, Section, slug

__all__ = ["render_page"]

_STYLE: Final = Path(__file__).with_name("style.css")
# The browser is told to load nothing from anywhere, so that a mistake here cannot make the page call somebody.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render_page(title: str, sections: Sequence[Section]) -> str:
    """Return the whole page; the first section is the first screen."""
    # Numbered, because two headings may differ only in signs that an address cannot have.
    anchors = [f"{number}-{slug(one.title)}" for number, one in enumerate(sections)]
    links = [f'<li><a href="#s{anchor}">{escape(one.title)}</a></li>' for anchor, one in zip(anchors, sections, strict=True)]
    body = [f"<header><h1>{escape(title)}</h1></header>", _section(sections[0], anchors[0], is_first=True)]
    body.append(f'<nav aria-label="Sections"><ul>{"".join(links[1:])}</ul></nav>')
    rest = zip(sections[1:], anchors[1:], strict=True)
    body += [_section(section, anchor, is_first=False) for section, anchor in rest]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n<main>\n{chr(10).join(body)}\n</main>\n</body>\n</html>\n"
    )


def _section(section: Section, anchor: str, *, is_first: bool) -> str:
    heading = "" if is_first else f"<h2>{escape(section.title)}</h2>"
    pieces: list[str] = []
    beside: list[str] = []
    for part in section.parts:
        if isinstance(part, Figure | Picture):
            beside.append(part.to_html())
            continue
        pieces += _flushed(beside)
        pieces.append(_lead(part) if is_first and part is section.parts[0] else part.to_html())
    pieces += _flushed(beside)
    content = "\n".join(pieces)
    return f'<section id="s{anchor}">{heading}\n{content}\n</section>'


def _flushed(beside: list[str]) -> list[str]:
    """Return the figures that were gathered as one row, and forget them."""
    row = [f'<div class="figures">{"".join(beside)}</div>'] if beside else []
    beside.clear()
    return row


def _lead(part: Part) -> str:
    return f'<div class="lead">{part.to_html()}</div>'
