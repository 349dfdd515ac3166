"""Numbers in the README come from a committed result, and its commands exist."""

import importlib.util
import json
import re
from pathlib import Path

from typer.testing import CliRunner

from rfedge.cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_measured_table_is_the_one_of_the_committed_result() -> None:
    spec = importlib.util.spec_from_file_location("readme_table", ROOT / "tools" / "readme_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    expected = module.render(json.loads(module.RESULT.read_text()), module.RESULT.relative_to(ROOT).as_posix())
    assert expected in README, "run python tools/readme_table.py"


def test_every_command_and_flag_in_the_readme_exists() -> None:
    surface = json.loads((ROOT / "tests" / "cli" / "surface.json").read_text())
    commands = [line for line in README.splitlines() if line.startswith("rfedge ")]
    assert len(commands) >= 5
    for line in commands:
        words = line.split()
        name = " ".join(words[1:3]) if " ".join(words[1:3]) in surface else words[1]
        assert name in surface, line
        for flag in re.findall(r"--[a-z-]+", line):
            assert flag in surface[name], f"{line}: {flag}"


def test_every_link_to_a_file_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 5
    for link in links:
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_help_lists_every_command() -> None:
    output = CliRunner().invoke(app, ["--help"]).output
    for command in ("demos", "train", "export", "verify", "run", "bench"):
        assert command in output
