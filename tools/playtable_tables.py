"""Write the measured tables of docs/playtable.md from the committed results; a test checks that they agree."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rfedge.benchmarks.report.markdown import grid

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "playtable.md"
DATE = "202611"
SCENES = ("D", "A", "B", "C")
CAMERAS = ("static", "gripper")


def load(name: str) -> dict[str, Any]:
    """Return one committed result."""
    document: dict[str, Any] = json.loads((RESULTS / f"{name}_{DATE}.json").read_text())
    return document


def solved(report: dict[str, Any], task: str) -> str:
    """Return "49/50" for a task."""
    success = report["tasks"][task]["success"]
    return f"{success['successes']}/{success['n']}"


def total(report: dict[str, Any]) -> str:
    """Return the successes of all tasks together and their share."""
    scores = [score["success"] for score in report["tasks"].values()]
    successes, trials = sum(score["successes"] for score in scores), sum(score["n"] for score in scores)
    return f"{successes}/{trials} ({successes / trials:.1%})"


def experts() -> str:
    """Return the experts' success per task, in PlayTable and in the real CALVIN."""
    playtable = {scene: load(f"experts_playtable-{scene.lower()}") for scene in SCENES}
    anywhere = load("experts_playtable-d-anywhere")
    calvin = {scene: load(f"experts_calvin-{scene.lower()}") for scene in SCENES}
    rows: list[tuple[object, ...]] = []
    for task, score in playtable["D"]["tasks"].items():
        in_d = (solved(playtable["D"], task), score["within_window"], f"{score['median_steps']:.0f}")
        others = (solved(playtable[scene], task) for scene in SCENES[1:])
        rows.append((task, *in_d, *others, solved(anywhere, task), solved(calvin["D"], task)))
    sums = (total(playtable[scene]) for scene in SCENES[1:])
    rows.append(("**all**", total(playtable["D"]), "", "", *sums, total(anywhere), total(calvin["D"])))
    columns = ("task", "D", "D within 64", "D median steps", "A", "B", "C", "D, starts anywhere", "real CALVIN, D")
    others_text = ", ".join(f"{scene} {total(calvin[scene])}" for scene in SCENES[1:])
    return f"{grid(columns, rows)}\n\nThe other scenes of the real CALVIN: {others_text}."


def chains() -> str:
    """Return how far the experts get in CALVIN's chains, in PlayTable and in the real CALVIN."""
    rows: list[tuple[object, ...]] = []
    for name, title in (("chains_playtable-d", "PlayTable"), ("chains_calvin-d", "real CALVIN")):
        report = load(name)
        length = report["average_length"]
        rates = (f"{report['success_rates'][str(count)]['value']:.1%}" for count in range(1, 6))
        interval = f"{length['value']:.3f} [{length['low']:.3f}, {length['high']:.3f}]"
        rows.append((title, report["conditions"]["num_chains"], *rates, interval))
    return grid(("scene D", "chains", ">= 1", ">= 2", ">= 3", ">= 4", "5", "average length, 95 % interval"), rows)


def cost() -> str:
    """Return what a control step costs."""
    rows: list[tuple[object, ...]] = []
    for name, title in (("env_playtable-d_cpu", "PlayTable"), ("env_calvin-d_cpu", "real CALVIN")):
        report = load(name)
        calls = (report["per_call_ms"][call] for call in ("advance", "observe", "step", "reset"))
        times = (f"{call['p50']:.1f} / {call['p90']:.1f}" for call in calls)
        rows.append((title, report["renderer"], *times, f"{report['build_ms']:.0f}"))
    machine = load("env_playtable-d_cpu")["machine"]
    columns = ("p50 / p90 ms", "renderer", "physics of a step", "both cameras", "a whole step", "reset", "building, once")
    return f"{grid(columns, rows)}\n\nMeasured on {machine['cpu']}, {machine['usable_cores']} cores, without a GPU."


def looks() -> str:
    """Return by how much the pictures differ from the real simulator's."""
    rows: list[tuple[object, ...]] = []
    for scene in SCENES:
        report = load(f"looks_calvin-{scene.lower()}")
        levels = [
            f"{report['differences'][name][camera]['mean']:.1f}" for name in ("playtable", "calvin") for camera in CAMERAS
        ]
        rows.append((scene, len(report["tasks"]), *levels))
    columns = tuple(f"`{name}`, {camera}" for name in ("playtable", "calvin") for camera in CAMERAS)
    return grid(("scene", "states", *columns), rows)


SECTIONS = {"looks": looks, "experts": experts, "chains": chains, "cost": cost}


def fill(text: str) -> str:
    """Return the page with every measured section written anew."""
    for name, render in SECTIONS.items():
        begin, end = f"<!-- measured {name}: begin -->", f"<!-- measured {name}: end -->"
        start, stop = text.index(begin) + len(begin), text.index(end)
        text = f"{text[:start]}\n{render()}\n{text[stop:]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
    sys.exit(0)
