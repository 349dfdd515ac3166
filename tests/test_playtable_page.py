"""What the experts and PlayTable reach in the committed results."""

from types import ModuleType

import pytest

from tests.tool_modules import load_tool


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return load_tool("measured_tables")


def test_the_results_reach_what_the_project_asks_for(tables: ModuleType) -> None:
    for scene in tables.SCENES:
        rates = [score["success"]["value"] for score in tables.load(f"experts_playtable-{scene.lower()}")["tasks"].values()]
        assert len(rates) == 34
        assert sum(rate >= 0.95 for rate in rates) >= 30
        assert min(rates) >= 0.80
    assert tables.load("chains_playtable-d")["average_length"]["value"] >= 4.4
    assert tables.load("env_playtable-d_cpu")["per_call_ms"]["step"]["p50"] <= 20.0
