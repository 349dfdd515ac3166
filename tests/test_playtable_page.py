"""The measured tables of docs/playtable.md are those of the committed results."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("playtable_tables", ROOT / "tools" / "playtable_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_committed_results(tables: ModuleType) -> None:
    text = tables.PAGE.read_text()
    assert tables.fill(text) == text, "run python tools/playtable_tables.py"


def test_the_results_reach_what_the_project_asks_for(tables: ModuleType) -> None:
    for scene in tables.SCENES:
        rates = [score["success"]["value"] for score in tables.load(f"experts_playtable-{scene.lower()}")["tasks"].values()]
        assert len(rates) == 34
        assert sum(rate >= 0.95 for rate in rates) >= 30
        assert min(rates) >= 0.80
    assert tables.load("chains_playtable-d")["average_length"]["value"] >= 4.4
    assert tables.load("env_playtable-d_cpu")["per_call_ms"]["step"]["p50"] <= 20.0
