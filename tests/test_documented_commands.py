"""Commands in README and documentation are ones that this command line takes."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from rfedge.cli.app import app
from tests.tool_modules import ROOT

# Records of decisions and of what did not work also name commands that are gone.
PAGES = sorted(
    {ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("rfedge/policies/*/*.md")}
    - {ROOT / "docs" / "log.md", *ROOT.glob("docs/adr/*.md")}
)
BLOCK = re.compile(r"^```.*?^```|(?:^ {4}[^\n]*\n)+", re.M | re.S)


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, lazy in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        found[name] = lazy.load()
        for member, leaf in (getattr(found[name], "commands", None) or {}).items():
            found[f"{name} {member}"] = getattr(leaf, "load", lambda leaf=leaf: leaf)()
    return found


def lines(text: str) -> Iterator[tuple[str, bool]]:
    """Yield (words behind `rfedge`, whether they stand in a block, where a command is whole) of every command in a page."""
    text = text.replace("\\\n", " ")
    for block in BLOCK.findall(text):
        for line in block.splitlines():
            for words in re.findall(r"(?:^|[\s/$])rfedge +([a-z].*)", re.sub(r"(^|\s)#.*", "", line)):
                yield re.split(r"[;|]", words)[0], True
    for words in re.findall(r"`(?:[^`]*-m )?rfedge\s+([a-z][^`:]*)`", BLOCK.sub("", text)):
        yield " ".join(words.split()), False


def mistake(line: str, whole: bool, commands: dict[str, Any]) -> str | None:
    words = shlex.split(re.sub(r"[][]|\.\.\.", "", line), comments=True)
    name = next((one for one in (" ".join(words[:2]), words[0]) if one in commands), None)
    if name is None:
        return "no such command"
    command = commands[name]
    context = command.context_class(command, allow_interspersed_args=True)
    try:
        _, left, _ = command.make_parser(context).parse_args(args=words[len(name.split()) :])
    except Exception as error:
        wants_value = type(error).__name__ == "BadOptionUsage"  # a sentence names an option without a value for it
        return None if wants_value and not whole else str(error)
    return f"{left} are too much" if left and whole else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_on_a_page_is_one_that_rfedge_takes(page: Any, commands: dict[str, Any]) -> None:
    found = {line: mistake(line, whole, commands) for line, whole in lines(page.read_text())}
    assert {line: wrong for line, wrong in found.items() if wrong} == {}


def test_a_wrong_command_is_found(commands: dict[str, Any]) -> None:
    block = "```\nrfedge bench sweep a\n$ rfedge run b --latest hold \\\n --task x  # why\n```\n"
    text = f"{block}`rfedge serve --porte 1`, `rfedge run\n--task`"
    found = [(line, mistake(line, whole, commands)) for line, whole in lines(text)]
    assert [wrong is not None for _, wrong in found] == [True, True, True, False], found


def test_readme_shows_commands(commands: dict[str, Any]) -> None:
    assert len(list(lines((ROOT / "README.md").read_text()))) > 20
