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
        name = " ".join(words[:2]) if " ".join(words[:2]) in SURFACE else words[0]
        assert set(re.findall(r"--[a-z-]+", stage.command)) <= set(SURFACE[name]), stage.command
        read = {words[index + 1] for index, word in enumerate(words) if word in ("--data", "--policy", "--config")}
        read |= {word for word in words[2:] if re.fullmatch(r"[a-z]{1,2}\d", word)} - {stage.output}
        assert {one.removesuffix("/checkpoint") for one in read} - {"playtable-small"} <= made, stage.command
        assert stage.output not in made
        made.add(stage.output)


def test_a_factor_scales_minutes_and_episodes(tool: ModuleType) -> None:
    assert tool.commands(tool.STAGES[0], 0.01, "turn_on_led")[3:7] == ["--tasks", "turn_on_led", "--episodes-per-task", "1"]
    seeing = next(stage for stage in tool.STAGES if stage.output == "pt2")
    assert "--minutes 5.5" in " ".join(tool.commands(seeing, 0.1, "all"))


@pytest.mark.slow
def test_stages_run_once_and_a_second_run_goes_on(tmp_path: Path) -> None:
    def run(until: str) -> list[str]:
        options = ("--output", str(tmp_path / "made"), "--factor", "0.01", "--tasks", "open_drawer,turn_on_led")
        command = [sys.executable, str(ROOT / "tools" / "make_policies.py"), *options, "--until", until]
        ended = subprocess.run(command, env=dict(os.environ), stdout=subprocess.PIPE, text=True, check=True, timeout=500)
        return [line for line in ended.stdout.splitlines() if line.startswith("===")]

    assert run("c2") == ["=== 1/2 c1: chains of tasks", "=== 2/2 c2: chains with pushes"]
    later = run("m2")
    assert [line.endswith("done before") for line in later] == [True, True, False, False, False, False]
    records = [json.loads(line) for line in (tmp_path / "made" / "stages" / "stages.jsonl").read_text().splitlines()[1:]]
    assert [record["output"] for record in records] == ["c1", "c2", "c3", "s1", "s2", "m2"]
    assert all(record["seconds"] > 0 for record in records)
    assert (tmp_path / "made" / "m2" / "training" / "ep_start_end_ids.npy").is_file()


def test_what_the_page_says_of_success_is_in_the_record(tool: ModuleType) -> None:
    page = " ".join(tool.PAGE.read_text().split())
    tables = load_tool("measured_tables")
    record = json.loads(tables.SWEEP.read_text())["success"]
    rows = {(row["policy"], row["execute_steps"], row["ensemble"]): row for row in record["rows"]}
    mean = {name: f"{row['chains']['average_length']['value']:.2f}" for name, row in rows.items()}
    closed = ("closed-loop-fp32", 1, 0.0)
    assert rows[closed]["paired"] is None, "it is what the others are compared with"
    assert f"{mean[closed]} tasks in a row in fp32 and {mean['closed-loop-int8', 1, 0.0]} in int8" in page
    assert f"({tables.share(rows['closed-loop-int8', 1, 0.0]['paired']['average_length_share'])})" in page
    assert f"jump-step policy {mean['jump-step-fp32', 4, None]} and {mean['jump-step-int8', 4, None]}" in page
    assert f"does {mean['closed-loop-fp32', 4, None]} (fp32) and {mean['closed-loop-int8', 4, None]} (int8)" in page
    plain = mean["closed-loop-fp32", 1, None], mean["closed-loop-int8", 1, None]
    assert f"Without the ensemble it does {plain[0]} and {plain[1]}" in page
    jerk = [f"{rows['closed-loop-fp32', 1, decay]['jerk']:.3f}" for decay in (None, 0.0)]
    assert f"its jerk is {jerk[0]} then, and {jerk[1]} with the ensemble" in page
    longer = json.loads(tables.LONG_RUN.read_text())
    opened, jumped = (tables.share(row["paired"]["average_length_share"]) for row in longer["rows"][1:])
    assert f"keeps {jumped} of the closed loop, the closed-loop policy in open loop {opened}" in page
    for row in longer["rows"]:
        first = rows[row["policy"], row["execute_steps"], row["ensemble"]]["chains"]["num_solved"]
        assert row["chains"]["num_solved"][: len(first)] == first, "the same chains on another machine"
    enriched = json.loads((tables.RESULTS / "success_playtable-d_enriched_cpu_202611.json").read_text())
    known, unknown = (row["chains"]["average_length"] for row in enriched["rows"])
    assert f"does {tables.interval(unknown)} tasks in a row where it does {known['value']:.2f}" in page
    (elsewhere,) = json.loads((tables.RESULTS / "success_calvin-d_cpu_202611.json").read_text())["rows"]
    single = elsewhere["single_tasks"]["success"]
    told_elsewhere = f"{tables.interval(elsewhere['chains']['average_length'])} tasks in a row and {single['successes']} of"
    assert f"does {told_elsewhere} {single['n']} single tasks" in page
    counts: dict[str, list[int]] = {}
    easy = {"open", "close", "move", "turn", "place"}
    for task, score in longer["rows"][2]["chains"]["tasks"].items():
        family = task.split("_")[0]
        done = counts.setdefault("easy" if family in easy else family, [0, 0])
        done[0] += score["success"]["successes"]
        done[1] += score["success"]["n"]
    told = {family: f"{done} of {begun}" for family, (done, begun) in counts.items()}
    expected = f"it did {told['easy']} with door, drawer, lights and placing, {told['push']} pushes, {told['rotate']} turns,"
    assert f"{expected} {told['lift']} lifts, {told['stack']} stacks" in page
