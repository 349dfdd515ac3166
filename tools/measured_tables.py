"""Write what pages show of the committed results: tables of README, policies and PlayTable, and the report as one page.

Tests check that they agree. The report has nothing to load: open it in a browser.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rfedge.benchmarks.report.build import Report, build_report
from rfedge.benchmarks.report.bundles import loop_name, world
from rfedge.benchmarks.report.markdown import bracketed, grid

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# Of the shipped policies; the first one leads.
RECORDS = (
    RESULTS / "success_playtable-d_cpu_202611.json",
    RESULTS / "success_playtable-d-closed-loop_cpu_202611.json",
    RESULTS / "success_playtable-d-calvin-looks_cpu_202611.json",
    RESULTS / "success_calvin-d_cpu_202611.json",
)
# Every precision, here and in CALVIN's simulator; the first one's latency counts.
PRECISIONS = tuple(RESULTS / f"sweep_precisions_{name}-d_cpu_202611.json" for name in ("playtable", "calvin"))
ABLATIONS = RESULTS / "ablations_playtable-d_cpu_202611.json"
README, PAGE = ROOT / "README.md", ROOT / "docs" / "results" / "playtable_policies.md"
PLAYTABLE, REPORT = ROOT / "docs" / "playtable.md", ROOT / "docs" / "results" / "report.html"
FILM = ROOT / "docs" / "images" / "jump_step_policy.gif"
SCENES = ("D", "A", "B", "C")
CAMERAS = ("static", "gripper")
# A phone shows the first three or four.
_COLUMNS = (
    "policy, precision",
    "simulator",
    "average length of 5",
    "chains",
    "single tasks",
    "call p50 / p99 ms",
    "MB",
    "loop",
    "execute_steps",
)
_RATES = ("policy", "precision", "simulator", "words", "chains", *(f"{number} of 5" for number in range(1, 6)))


def render() -> list[tuple[Path, str]]:
    """Return (file, everything from one of its markers to the other, with them)."""
    records = {path: _read(path) for path in RECORDS}
    return [
        (README, _marked("measured table", success_table(records))),
        (PAGE, _marked("success", rates_table(records))),
        (PAGE, _marked("precisions", precisions_table(*map(_read, PRECISIONS)))),
        (PAGE, _marked("ablations", ablations_table(_read(ABLATIONS)))),
        *((PLAYTABLE, _marked(f"measured {make.__name__}", make())) for make in (looks, experts, chains, cost)),
    ]


def _marked(name: str, *texts: str) -> str:
    return "\n".join([f"<!-- {name}: begin -->", *texts, f"<!-- {name}: end -->"])


def _rows(records: dict[Path, dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    """Yield (row, its policy, its simulator) of every record."""
    for record in records.values():
        policies = {policy["label"]: policy for policy in record["policies"]}
        for row in record["rows"]:
            simulator = world(record["conditions"]["environment"], row["looks"], "", "")
            yield row, policies[row["policy"]], simulator.strip()


def success_table(records: dict[Path, dict[str, Any]]) -> str:
    """Return the Markdown table and its caption for the reports of `rfedge bench success`, in CALVIN's own words."""
    rows = []
    for row, policy, simulator in _rows(records):
        if row["language"] != "evaluation":
            continue
        chains, tasks, call = row["chains"], row["single_tasks"], row["call_ms"]
        cells = (
            f"{_policy(policy)} {row['precision']}",
            simulator,
            bracketed(chains["average_length"]),
            str(chains["num_chains"]),
            f"{tasks['success']['value']:.0%}" if tasks else "-",
            f"{call['p50']:.1f} / {call['p99']:.1f}",
            f"{policy['size_bytes'] / 1e6:.1f}",
            loop_name(row),
            str(row["execute_steps"]),
        )
        rows.append(cells)
    machines = {f"{one['machine']['cpu']}, {one['machine']['usable_cores']} cores": None for one in records.values()}
    caption = (
        "`rfedge bench success` of the shipped policies, scene D, on the first of CALVIN's chains and prepared starts of "
        "each of 34 tasks; intervals of 95 %. Latency during these rollouts on "
        f"{' and '.join(machines)}, one policy per core, other work beside. "
        f"Every figure: {', '.join(f'[{path.name}]({path.relative_to(ROOT).as_posix()})' for path in records)}."
    )
    return f"{grid(_COLUMNS, rows)}\n\n{caption}"


def rates_table(records: dict[Path, dict[str, Any]]) -> str:
    """Return the Markdown table with the columns that CALVIN's results have."""
    rows = []
    for row, policy, simulator in _rows(records):
        if (chains := row["chains"]) is not None:
            rates = (f"{chains['success_rates'][str(number)]['value']:.0%}" for number in range(1, 6))
            cells = (_policy(policy), row["precision"], simulator, row["language"], str(chains["num_chains"]), *rates)
            rows.append((*cells, bracketed(chains["average_length"])))
    return grid((*_RATES, "average length"), rows)


def precisions_table(*records: dict[str, Any]) -> str:
    """Return the Markdown table of two reports of `rfedge bench success --precisions all`, PlayTable's and CALVIN's."""
    first = records[0]
    policies = {policy["label"]: policy for policy in first["success"]["policies"]}
    variants = {variant["name"]: variant for variant in first["latency"]["variants"]}
    rows = []
    for number, (row, joined) in enumerate(zip(first["success"]["rows"], first["rows"], strict=True)):
        here = [record["success"]["rows"][number] for record in records]
        assert {one["policy"] for one in here} == {row["policy"]}
        policy, call = policies[row["policy"]], joined["per_call_ms"]
        cells = []
        for one in here:
            kept = "-" if one["paired"] is None else bracketed(one["paired"]["average_length_share"])
            cells += [bracketed(one["chains"]["average_length"]), kept]
        loaded = variants[joined["variant"]]["load_rss_bytes"]
        sizes = (f"{call['p50']:.1f} / {call['p99']:.1f}", f"{policy['size_bytes'] / 1e6:.1f}", f"{loaded / 1e6:.0f}")
        rows.append((row["precision"], *cells, *sizes, policy.get("backend") or first["success"]["conditions"]["backend"]))
    chains = [record["success"]["conditions"]["num_chains"] for record in records]
    columns = (
        "precision",
        f"PlayTable, {chains[0]} chains",
        "of fp32",
        f"CALVIN, {chains[1]} chains",
        "of fp32",
        "call p50 / p99 ms",
        "MB",
        "loaded MB",
        "backend",
    )
    machine = first["machine"]
    caption = (
        "`rfedge bench success playtable-jump-step --precisions all`, average length of 5 in scene D, paired chains, 4 "
        f"steps per call; intervals of 95 %. Latency alone on {machine['cpu']}, {machine['usable_cores']} cores. "
        f"Every figure: {', '.join(f'[{path.name}](../../{path.relative_to(ROOT).as_posix()})' for path in PRECISIONS)}."
    )
    return f"{grid(columns, rows)}\n\n{caption}"


def ablations_table(record: dict[str, Any]) -> str:
    """Return the Markdown table of the report of `python -m rfedge.benchmarks.studies.ablations`."""
    rows = []
    for variant, row in zip(record["variants"], record["success"]["rows"], strict=True):
        paired = row["paired"]
        cells = (
            variant["name"],
            variant["change"],
            str(variant["steps"]),
            f"{variant['held_out_loss']:.4f}",
            share(row["single_tasks"]["success"]),
            "-" if paired is None else share(paired["single_task_share"]),
        )
        rows.append(cells)
    return grid(("variant", "what is changed", "training steps", "held-out loss", "single tasks", "of the first row"), rows)


def _policy(policy: dict[str, Any]) -> str:
    return "jump-step" if policy["frame_stride"] > 1 else "closed-loop"


def share(value: dict[str, float]) -> str:
    return f"{value['value']:.0%} [{value['low']:.0%}, {value['high']:.0%}]"


def _read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def load(name: str) -> dict[str, Any]:
    return _read(RESULTS / f"{name}_202611.json")


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
        rates = (f"{report['success_rates'][str(count)]['value']:.1%}" for count in range(1, 6))
        rows.append((title, report["conditions"]["num_chains"], *rates, bracketed(report["average_length"], 3)))
    return grid(("scene D", "chains", ">= 1", ">= 2", ">= 3", ">= 4", "5", "average length, 95 % interval"), rows)


def cost() -> str:
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


def make_report() -> Report:
    """Return the report of all committed results and the film of the shipped policy."""
    return build_report((RESULTS,), (FILM,) if FILM.is_file() else (), "rfedge: what was measured")


def main() -> int:
    for path, part in render():
        text, (first, *_, last) = path.read_text(), part.splitlines()
        path.write_text(text[: text.index(first)] + part + text[text.index(last) + len(last) :])
    make_report().write(REPORT, REPORT.with_suffix(".md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
