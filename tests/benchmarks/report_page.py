"""Reads a report's page as a test wants it."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "hr"}


class Page(HTMLParser):
    """Reads tables as rows of texts, and whether every element is closed by its own end."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self._caption = ""
        self._is_note = False
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "srcset", "data", "poster", "action")]
        (self.links if tag == "a" else self.loaded).extend(value or "" for name, value in attrs if name == "href")
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if values.get("class") == "scroll":
            self._caption = values["aria-label"] or ""
            self.tables[self._caption] = []
        elif tag == "tr":
            self.tables[self._caption].append([])
        elif tag in ("td", "th"):
            self.tables[self._caption][-1].append("")
        self._is_note = tag == "sup"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._is_note = False

    def handle_data(self, data: str) -> None:
        if not self._is_note and self.open and self.open[-1] in ("td", "th"):
            self.tables[self._caption][-1][-1] += data

    def table(self, beginning: str) -> list[list[str]]:
        (found,) = [table for caption, table in self.tables.items() if caption.startswith(beginning)]
        return found
