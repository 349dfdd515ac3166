"""The measured tables of docs/precisions.md and docs/how-to/build_engines.md are those of the committed result."""

import json
from types import ModuleType

import pytest

from tests.tool_modules import load_tool


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return load_tool("precisions_tables")


@pytest.mark.parametrize("name", ["precisions", "engines"])
def test_the_page_shows_the_committed_result(tables: ModuleType, name: str) -> None:
    text = tables.PAGES[name][0].read_text()
    assert text.count(f"<!-- measured {name}: begin -->") == text.count(f"<!-- measured {name}: end -->") == 1
    if not tables.RESULT.exists():
        pytest.skip(f"no {tables.RESULT.name} is committed: the numbers on the page are marked as taken by hand")
    report = json.loads(tables.RESULT.read_text())
    assert tables.fill(name, text, report) == text, "run python tools/precisions_tables.py"


def test_every_form_has_a_name_for_readers(tables: ModuleType) -> None:
    from rfedge.benchmarks.latency.precisions import FORMS

    assert set(tables.TITLES) <= {form.name for form in FORMS}
