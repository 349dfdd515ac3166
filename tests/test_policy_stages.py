"""The stages that made the shipped policies: one command, the same as in the documentation, going on where it stopped."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.tool_modules import ROOT, load_tool

SURFACE = json.loads((ROOT / "tests" / "cli" / "surface.json").read_text())


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("make_policies")


def test_the_page_lists_the_stages(tool: ModuleType) -> None:
    assert tool.render() in tool.PAGE.read_text(), "run python tools/make_policies.py --page"


def test_every_stage_has_flags_that_exist_and_reads_what_an_earlier_one_wrote(tool: ModuleType) -> None:
    made: set[str] = set()
    for stage in tool.STAGES:
        words = stage.command.split()
        flags = set(re.findall(r"--[a-z-]+", stage.command))
        if stage.program == "python":
            assert flags == {"--output"}
            assert (ROOT / words[0]).is_file()
        else:
            name = " ".join(words[:2]) if " ".join(words[:2]) in SURFACE else words[0]
            assert flags <= set(SURFACE[name]), stage.command
        read = {words[index + 1] for index, word in enumerate(words) if word in ("--data", "--policy", "--config")}
        read |= {word for word in words[2:] if re.fullmatch(r"[a-z]{1,2}\d(/checkpoint)?", word)} - {stage.output}
        assert {one.removesuffix("/checkpoint") for one in read} - {"playtable-small"} <= made, stage.command
        assert stage.output not in made
        made.add(stage.output)


def test_a_factor_scales_minutes_and_episodes(tool: ModuleType) -> None:
    assert tool.commands(tool.STAGES[0], 0.01, "turn_on_led")[3:7] == ["--tasks", "turn_on_led", "--episodes-per-task", "1"]
    seeing = next(stage for stage in tool.STAGES if stage.output == "eyes2")
    assert "--minutes 2" in " ".join(tool.commands(seeing, 0.1, "all"))


@pytest.mark.slow
def test_stages_run_once_and_a_second_run_goes_on(tmp_path: Path) -> None:
    def run(until: str) -> list[str]:
        options = ("--output", str(tmp_path / "made"), "--factor", "0.01", "--tasks", "open_drawer,turn_on_led")
        command = [sys.executable, str(ROOT / "tools" / "make_policies.py"), *options, "--until", until]
        ended = subprocess.run(command, env=dict(os.environ), stdout=subprocess.PIPE, text=True, check=True, timeout=500)
        return [line for line in ended.stdout.splitlines() if line.startswith("===")]

    assert run("c1") == ["=== 1/2 s1: single tasks with pushes", "=== 2/2 c1: chains with pushes"]
    later = run("m1")
    assert [line.endswith("done before") for line in later] == [True, True, False]
    records = [json.loads(line) for line in (tmp_path / "made" / "stages" / "stages.jsonl").read_text().splitlines()[1:]]
    assert [record["output"] for record in records] == ["s1", "c1", "m1"]
    assert all(record["seconds"] > 0 for record in records)
    assert (tmp_path / "made" / "m1" / "training" / "ep_start_end_ids.npy").is_file()
