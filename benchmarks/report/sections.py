"""The page's sections, one for each kind of record; a kind without a section of its own is a list of its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from rfedge.benchmarks.report.bundles import Document, Names, successes, world
from rfedge.benchmarks.report.collect import MIXED_FORMAT, Collection, Found
from rfedge.benchmarks.report.markdown import (
    Cell,
    Part,
    Section,
    Table,
    bracketed,
    interval,
    megabytes,
    milliseconds,
    missing,
    percent,
    percentiles,
    share,
    times_faster,
)
from rfedge.benchmarks.report.plots import Bar, plot_bars
from rfedge.benchmarks.report.speed import isolated, latency, resource_tables

_MAX_FACTS: Final = 40


def record_sections(collection: Collection, names: Names) -> list[Section]:
    """Return the sections of all records; a record that cannot be shown is moved to those that were left out."""
    sections: dict[str, list[Part]] = {}
    parts = [one for one in collection.found if one.form not in ("rfedge-success", "rfedge-sweep")]
    parts += successes(collection)
    parts += [Found(one.name, "rfedge-latency", one.document["latency"]) for one in collection.of("rfedge-sweep")]
    order = list(_SECTIONS)
    for one in sorted(parts, key=lambda part: order.index(part.form) if part.form in order else len(order)):
        title, render = _SECTIONS.get(one.form, ("Other measurements", _facts))
        sections.setdefault(title, []).extend(collection.read(one, render(one.name, one.document, names)))
    tasks = [
        ("Tasks of the chains, solved of attempted.", "rfedge-success", "chains"),
        ("Single tasks from prepared starts, solved of attempted.", "rfedge-success", "single_tasks"),
        ("Scripted experts from random starts, solved of attempted.", "rfedge-expert-success", ""),
    ]
    sections["Task by task"] = []
    for caption, form, part in tasks:
        found = [one for one in parts if one.form == form]
        scores = dict(pair for one in found for pair in collection.read(one, _scores(one, part, names)))
        sections["Task by task"] += _tasks(caption, scores)
    return [Section(title, shown) for title, shown in sections.items() if shown]


def _success(name: str, document: Document, names: Names) -> Iterator[Part]:
    rows, conditions = document["rows"], document["conditions"]
    said = f"{name}: at most {conditions['max_steps']} control steps per task, seed {conditions['seed']}, 95 % intervals"
    if left_out := conditions.get("left_out_instructions"):
        said += f", without {len(left_out)} instructions that a bundle does not know"
    chains = [(names.run(name, row["name"]), row, row["chains"]) for row in rows if row["chains"]]
    if chains:
        cells = [[run, *_rates(part), *_effort(row, part)] for run, row, part in chains]
        caption = f"{said}. Share of {conditions['num_chains']} chains with at least so many tasks solved."
        columns = ["run", "average length", "1", "2", "3", "4", "5", "steps of a solved task", *_MOTION]
        yield Table(caption, columns, cells)
    single = [(names.run(name, row["name"]), row, row["single_tasks"]) for row in rows if row["single_tasks"]]
    if single:
        cells = [[run, share(part["success"]), *_effort(row, part)] for run, row, part in single]
        columns = ["run", "solved", "steps of a solved start", *_MOTION]
        yield Table(f"{said}. Single tasks from prepared starts.", columns, cells)
    paired = [(names.run(name, row["name"]), row["paired"]) for row in rows if row["paired"]]
    if paired:
        cells = [[run, names.run(name, pair["reference"]), *_difference(pair)] for run, pair in paired]
        columns = ["run", "reference", "average length", "of the reference", "single tasks", "of the reference"]
        yield Table(f"{name}: differences from the reference over the same chains and starts.", columns, cells, 2)
    if document["not_possible"]:
        cells = [
            [names.bundle(name, one["policy"]), str(one["execute_steps"]), one["reason"]] for one in document["not_possible"]
        ]
        yield Table(f"{name}: asked for and not possible.", ["bundle", "execute_steps", "why"], cells, 3)


def _rates(chains: Document) -> list[Cell]:
    return [interval(chains["average_length"]), *map(percent, chains["success_rates"].values())]


_MOTION: Final = ("jerk", "call p50 / p99 ms, workers beside", "control steps")


def _effort(row: Document, part: Document) -> list[Cell]:
    steps, jerk = part["mean_solved_steps"], row["jerk"]
    changed = ", ".join(f"{count} {name}" for name, count in row.get("interventions", {}).items())
    p50, _, p99 = percentiles(row["call_ms"], "no call was timed")
    return [
        missing("nothing was solved") if steps is None else f"{steps:.1f}",
        missing("no task took three steps") if jerk is None else f"{jerk:.4f}",
        f"{p50} / {p99}" if row["call_ms"] else p50,
        (str(row["num_control_steps"]), changed and f"actions that the guard changed: {changed}"),
    ]


def _difference(paired: Document) -> Iterator[Cell]:
    for what in ("average_length", "single_task"):
        difference, ratio = paired[f"{what}_difference"], paired[f"{what}_share"]
        if difference is None:
            yield from [missing("not asked for")] * 2
            continue
        yield f"{difference['value']:+.2f} [{difference['low']:+.2f}, {difference['high']:+.2f}]"
        yield missing("the reference solved nothing") if ratio is None else share(ratio)


def _tasks(caption: str, scores: Mapping[str, Document]) -> list[Table]:
    """Return one table with tasks as rows and runs as columns, or none for no run."""
    solved = {run: {task: one["success"] for task, one in tasks.items()} for run, tasks in scores.items()}
    rows: list[list[Cell]] = [
        [task, *(f"{one[task]['successes']}/{one[task]['n']}" if task in one else "" for one in solved.values())]
        for task in sorted({task for tasks in scores.values() for task in tasks})
    ]
    return [Table(caption, ["task", *scores], rows)] if rows else []


def _scores(one: Found, part: str, names: Names) -> Iterator[tuple[str, Document]]:
    """Yield (run, score of every task) of a success record's part, or of a record of the experts."""
    if not part:
        yield f"{_world(one.document)}{', anywhere' * one.document['anywhere']}", one.document["tasks"]
        return
    for row in one.document["rows"]:
        if row[part]:
            place, n = _world({**one.document["conditions"], **row}), row[part].get("num_chains")
            yield f"{names.run(one.name, row['name'])}, {place}" + (f", n = {n}" if n else ""), row[part]["tasks"]


def _world(facts: Document) -> str:
    return world(facts["environment"], facts.get("looks"), facts.get("renderer", ""), facts["scene"])


def _precisions(name: str, document: Document, names: Names) -> Iterator[Part]:
    cells: list[list[Cell]] = []
    for row in document["rows"]:
        reason = row["not_timed"] or "not timed"
        sizes = [megabytes(row[key], reason) for key in ("bundle_bytes", "backbone_bytes")]
        faster = times_faster(row["speedup"], reason if row["call_ms"] is None else "the baseline itself")
        cells.append(
            [
                names.bundle(name, row["name"]),
                *sizes,
                *percentiles(row["call_ms"], reason),
                faster,
                *_errors(row["metrics"]),
                _gates(row),
            ]
        )
    caption = (
        f"{name}: {document['policy']} on {names.mark(document['machine'])}, {document['iterations']} calls of each; "
        f"errors against PyTorch over {document['parity_steps']} steps with carried state (1.0 is 20 mm or 0.05 rad)."
    )
    columns = ["bundle", "MB", "backbone MB", "p50 ms", "p90 ms", "p99 ms", "over fp32", *_ERRORS.values(), "gates"]
    yield Table(caption, columns, cells)
    engines = [(one["name"], one["engine"]) for one in document["engines"] if one["engine"]]
    if engines:
        cells = [
            [label, f"{engine['builder']}, SM{engine['sm']}", megabytes(engine["engine_bytes"]), f"{engine['build_s']:.1f}"]
            for label, engine in engines
        ]
        caption = f"{name}: TensorRT engines of the backbone, built ahead of time without a GPU and not run."
        yield Table(caption, ["bundle", "builder", "engine MB", "build s"], cells, 2)


_ERRORS: Final = {
    "min_feature_cosine": "least feature cosine",
    "action_max_error": "largest action error",
    "gripper_flip_rate": "gripper flips",
}


def _errors(metrics: Mapping[str, float]) -> list[Cell]:
    return [f"{metrics[key]:.5f}" if key in metrics else missing("not in the record") for key in _ERRORS]


def _gates(row: Document) -> Cell:
    forced = "the bundle was forced" if row.get("forced") or row.get("forced_past") else ""
    return "met" if row["passed"] else ("missed", forced)


def _parity(name: str, manifest: Document, _: Names) -> Iterator[Part]:
    cells: list[list[Cell]] = [
        [
            manifest["policy"]["name"],
            manifest["precision"]["requested"],
            *_errors(manifest["parity"]["metrics"]),
            _gates(manifest["parity"]),
        ]
    ]
    columns = ["policy", "precision", *_ERRORS.values(), "gates"]
    yield Table(f"{name}: what the export measured against PyTorch, with carried state.", columns, cells, 2)


def _mixed(name: str, search: Document, _: Names) -> Iterator[Part]:
    errors, saved = [], []
    for block, found in search["blocks"].items():
        short, error = block.replace(".layers.", ".").replace(".blocks.", "."), found["metrics"]["action_mean_error"]
        colour = 0 if found["precision"] == "int8" else 1
        errors.append(Bar(short, error, f"{error:.2g}", colour=colour))
        saved.append(Bar(short, found["saved_ms"], f"{found['saved_ms']:.3f}", colour=colour))
    legend = ("int8 in the plan", "float in the plan")
    caption = (
        f"{name}: mean action error of int8 in this block alone over {search['num_steps']} steps (1.0 is 20 mm or 0.05 rad)."
    )
    yield plot_bars(errors, "mean action error", caption, legend)
    caption = f"{name}: milliseconds of a backbone call that int8 saves in this block."
    yield plot_bars(saved, "ms saved by int8", caption, legend)
    cells: list[list[Cell]] = [
        [
            block,
            found["precision"],
            f"{found['saved_ms']:+.3f}",
            *(f"{found['metrics'][key]:.2g}" for key in ("action_mean_error", "action_max_error")),
            found["reason"],
        ]
        for block, found in search["blocks"].items()
    ]
    columns = ["block", "plan", "ms saved", "mean error", "largest error", "why"]
    caption = f"{name}: int8 in one block alone, over {search['num_steps']} steps with carried state."
    yield Table(caption, columns, cells, 2)
    metric, nan = search["budget_metric"], float("nan")
    reached, *others = (search[key].get(metric, nan) for key in ("metrics", "int8_metrics", "uniform_metrics"))
    caption = (
        f"{name}: budget {metric} at most {search['budget']:g}; the plan has {reached:.4g}, int8 {others[0]:.4g}, int8 in "
        f"every block {others[1]:.4g}; {search['num_measured']} errors measured, {search['num_reused']} found from before."
    )
    ratios: list[list[Cell]] = [[ratio, f"{value:.3f}"] for ratio, value in search["time_ratios"].items()]
    yield Table(caption, ["backbone call, ratio of medians", "time"], ratios)


def _ablations(name: str, document: Document, _: Names) -> Iterator[Part]:
    cells: list[list[Cell]] = []
    for variant, row in zip(document["variants"], document["success"]["rows"], strict=True):
        loss, single, chains = variant["held_out_loss"], row["single_tasks"], row["chains"]
        cells.append(
            [
                variant["name"],
                variant["change"],
                str(variant["steps"]),
                missing("nothing was held out") if loss is None else f"{loss:.4f}",
                share(single["success"]) if single else missing("not asked for"),
                interval(chains["average_length"]) if chains else missing("not asked for"),
            ]
        )
    minutes = max(variant["seconds"] for variant in document["variants"]) / 60
    caption = f"{name}: {minutes:.0f} minutes of training with one thing changed, then the same rollouts; 95 % intervals."
    columns = ["variant", "what is changed", "training steps", "held-out loss", "single tasks", "average length of 5"]
    yield Table(caption, columns, cells, 2)


def _tune(name: str, document: Document, names: Names) -> Iterator[Part]:
    cells: list[list[Cell]] = []
    for duel in document["duels"]:
        own, other = (f"{ms:.2f}" for ms in duel["call_ms"]) if duel["call_ms"] else ("-", "-")
        error = f"{duel['metrics']['action_max_error']:.2g}" if duel["metrics"] else "-"
        ratio = times_faster(duel["speedup"], "not timed")
        cells.append([duel["name"], own, other, ratio, error, duel["verdict"]])
    caption = (
        f"{name}: ways to run {document['bundle']} on {names.mark(document['machine'])}, checked on "
        f"{document['checked_on']}; each is timed in turn with the best before it."
    )
    if document["not_tried"]:
        caption += f" No time left for {'; '.join(document['not_tried'])} (raise --budget-s)."
    columns = ["candidate", "call p50 ms", "the best before", "speed-up", "action error", "verdict"]
    yield Table(caption, columns, cells)


def _episodes(name: str, document: Document, _: Names) -> Iterator[Part]:
    runs = {"mean action": document["mean_action"]}
    for row in document["rows"]:
        runs[f"{row['policy']} {row['precision']}, {row['execute_steps']} of a chunk"] = row["score"]
    measures = {
        "action error (1.0 is the scale)": ("action_error", 3),
        "position error, mm per step": ("position_error_mm", 2),
        "rotation error, degrees per step": ("rotation_error_deg", 2),
        "gripper agreement": ("gripper_agreement", 3),
    }
    cells: list[list[Cell]] = [
        [text, *(bracketed(score[key], digits) for score in runs.values())] for text, (key, digits) in measures.items()
    ]
    changes = f"gripper changes ({document['num_gripper_changes']} recorded)"
    cells.append([changes, *(str(score["num_gripper_changes"]) for score in runs.values())])
    size = f"{len(document['episodes'])} episodes, {document['num_steps']} steps of {document['data']}"
    yield Table(f"{name}: {size}; 95 % intervals over episodes.", ["", *runs], cells)


def _chains(name: str, document: Document, _: Names) -> Iterator[Part]:
    conditions = document["conditions"]
    place = _world({**document, **conditions})
    caption = f"{name}: {conditions['agent'].get('name', 'unknown')} in {place}, {conditions['num_chains']} chains."
    yield Table(caption, ["average length", "1", "2", "3", "4", "5"], [_rates(document)], 0)


_OUTCOMES: Final = {True: "success", False: "failure", None: "not checked"}
_STOPS: Final = {
    "misses": "stopped after too many misses",
    "frozen": "stopped: a camera repeats its picture",
    "backbone": "stopped: backbone beyond its deadline",
    "step": "stopped: control step beyond its deadline",
}


def _rollouts(name: str, document: Document, _: Names) -> Iterator[Part]:
    episodes, task = document["episodes"], document["task"]
    place = f"{document['environment']} scene {document['scene']}, renderer {document['renderer']}"
    place += f", looks {document['looks']}" if document.get("looks") else ""
    how = f"{document['policy']} {document['precision']}, {document['mode']}, {document['execute_steps']} of each chunk"
    cells: list[list[Cell]] = [
        [
            str(one["seed"]),
            _OUTCOMES[one["success"]],
            str(one["num_steps"]),
            str(one["num_inferences"]),
            ", ".join(_events(one, holds_rate=document["rate_hz"] is not None)),
        ]
        for one in episodes
    ]
    result = f"{sum(one['success'] is True for one in episodes)} of {len(episodes)} succeeded at {task}"
    if task is None:
        result = "none of the simulator's tasks: success is not checked"
    columns = ["seed", "result", "steps", "inferences", "events"]
    yield Table(f"{name}: {how}; {place}; {document['instruction']!r}: {result}.", columns, cells, 2)
    per_step = document["mean_per_control_step_ms"]
    cells = [
        [stage, *(f"{summary[level]:.3f}" for level in ("p50", "p90", "p99", "max")), f"{per_step[stage]:.3f}"]
        for stage, summary in document["per_call_ms"].items()
    ]
    columns = ["stage", "p50", "p90", "p99", "max", "mean per control step"]
    yield Table(f"{name}: milliseconds per policy call.", columns, cells)
    if document.get("resources"):
        yield from resource_tables(f"{name}: beside the run, simulator included", {"run": document["resources"]})


def _events(episode: Document, *, holds_rate: bool) -> Iterator[str]:
    if holds_rate:
        lag_ms = 1000 * episode["max_lag_s"] if "max_lag_s" in episode else episode["max_lag_ms"]  # of older records
        yield f"{episode['num_late']} late (up to {lag_ms:.1f} ms), {episode['num_missed']} missed"
        yield f"frames up to {episode['max_age_ms']:.0f} ms old"
    counts = {"starved": episode["num_starved"], "without an answer": episode["num_unavailable"]}
    counts |= episode["interventions"]
    counts |= {f"equal frames of {camera}": count for camera, count in episode.get("frozen", {}).items()}
    yield from (f"{count} {what}" for what, count in counts.items() if count)
    if episode["ended"] in _STOPS:
        yield _STOPS[episode["ended"]]


def _facts(name: str, document: Document, names: Names) -> Iterator[Part]:
    head = ("format", "schema_version", "measured_at", "commit", "machine", "versions", "simulator_versions")
    facts = list(_leaves({key: value for key, value in document.items() if key not in head}))
    if not facts:
        raise ValueError("it holds nothing")
    cells: list[list[Cell]] = [[*fact] for fact in facts[:_MAX_FACTS]]
    more = f"; {len(facts) - _MAX_FACTS} more in the record" if len(facts) > _MAX_FACTS else ""
    place = names.mark(document["machine"])
    yield Table(f"{name}: {document['format'].removeprefix('rfedge-')} on {place}{more}.", ["what", "measured"], cells, 2)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, text) of every number and word of a record, a summary or an interval as one."""
    if isinstance(value, dict) and "p50" in value:
        yield f"{name} p50 / p90 / p99", " / ".join(milliseconds(value[level]) for level in ("p50", "p90", "p99"))
    elif isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
        yield name, f"{value['value']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name} {key}".strip())
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{name} {inner.get('name', number)}")
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value))
    elif value is not None:
        yield name, f"{value:.6g}" if isinstance(value, float) else str(value)


Render = Callable[[str, Document, Names], Iterator[Part]]
# format -> heading, and what fills the section; in the order of the page
_SECTIONS: Final[dict[str, tuple[str, Render]]] = {
    "rfedge-success": ("Success", _success),
    "rfedge-ablations": ("What each part is worth", _ablations),
    "rfedge-rollouts": ("Episodes", _rollouts),
    "rfedge-latency": ("Latency", latency),
    "rfedge-precisions": ("Precisions", _precisions),
    "rfedge-bundle": ("Parity of the bundles", _parity),
    MIXED_FORMAT: ("Block by block", _mixed),
    "rfedge-peers": ("Beside other runtimes", isolated),
    "rfedge-tune": ("Ways to run a bundle", _tune),
    "rfedge-episodes": ("Recorded episodes", _episodes),
    "rfedge-chains": ("Chains", _chains),
    "rfedge-expert-success": ("Scripted experts", lambda *_: iter(())),  # a column of the tasks
}
