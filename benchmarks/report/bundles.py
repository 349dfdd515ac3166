"""Bundles: one name for each, their success joined with their speed, and which of them to put on the robot.

A speed belongs to a success when policy, precision and size in bytes are equal and, where both records tell, the manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rfedge.benchmarks.report.collect import Collection, Found
from rfedge.benchmarks.report.markdown import (
    Cell,
    Table,
    interval,
    megabytes,
    milliseconds,
    missing,
    percentiles,
    plain,
    share,
)
from rfedge.benchmarks.report.plots import Bar, Plot, Point, plot_bars, plot_points

_NO_SPEED = "no latency record of this bundle: run rfedge bench latency"
_NO_POWER = "not asked for: rfedge bench latency --resource-seconds"
Document = dict[str, Any]


@dataclass(slots=True)
class Names:
    """Marks of the machines, M1, M2, ... in the order in which they are met, and one name for every bundle."""

    machines: list[Document] = field(default_factory=list)
    # (record, what it calls a bundle) -> the bundle's name
    bundles: dict[tuple[str, str], str] = field(default_factory=dict)

    def mark(self, machine: Document) -> str:
        if machine not in self.machines:
            self.machines.append(machine)
        return f"M{self.machines.index(machine) + 1}"

    def bundle(self, record: str, label: str) -> str:
        """Return the name of what a record calls `label`; a second timing of a bundle is its name and "(again)"."""
        first = label.removesuffix(" (again)")
        return self.bundles.get((record, first), first) + label[len(first) :]

    def run(self, record: str, row: str) -> str:
        """Return the name of a success row, which begins with what its record calls the bundle, with the bundle's name."""
        labels = [label for name, label in self.bundles if name == record and row.startswith(label)]
        label = max(labels, key=len, default="")
        return self.bundle(record, label) + row.removeprefix(label).removesuffix(" evaluation")


@dataclass(frozen=True, slots=True)
class Speed:
    """Times of one bundle from one record; `manifest_sha256` is "" where the record does not tell."""

    record: str
    label: str
    policy: str
    precision: str
    size_bytes: int
    manifest_sha256: str
    machine: Document
    backend: str
    call_ms: Document
    execute_steps: int | None = None
    resources: Document | None = None


@dataclass(slots=True)
class Row:
    """One way to run a bundle, on one machine where it was timed; `success` or `speed` is None, never both."""

    record: str
    label: str
    policy: Document
    world: str = ""
    success: Document | None = None
    speed: Speed | None = None
    name: str = ""

    @property
    def size_bytes(self) -> int:
        return int(self.policy["size_bytes"])

    @property
    def chains(self) -> Document | None:
        return None if self.success is None else self.success["chains"]

    @property
    def execute_steps(self) -> int | None:
        return self.success["execute_steps"] if self.success else self.speed.execute_steps if self.speed else None

    @property
    def step_ms(self) -> float | None:
        """The median call over the control steps that it serves."""
        if self.speed is None or self.execute_steps is None:
            return None
        return float(self.speed.call_ms["p50"]) / self.execute_steps


def world(environment: str, looks: str | None, renderer: str, scene: str) -> str:
    """Return a simulator's name, such as "PlayTable in CALVIN's looks D"."""
    names = {"playtable": "PlayTable", "calvin": "CALVIN"}
    looking = "" if looks in (None, environment) else f" in {names.get(str(looks), looks)}'s looks"
    return f"{names.get(environment, environment)}{looking}{' (tiny)' if renderer == 'tiny' else ''} {scene}"


def successes(collection: Collection) -> list[Found]:
    """Return all success documents, those inside sweeps first."""
    sweeps = collection.of("rfedge-sweep")
    return [Found(one.name, "rfedge-success", one.document["success"]) for one in sweeps] + collection.of("rfedge-success")


def loop_name(success: Document) -> str:
    """Return what tables call a row's loop: its kind, and whether it plays an ensemble."""
    return str(success["kind"]) + ("" if success.get("ensemble") is None else ", ensemble")


def bundle_rows(collection: Collection, names: Names) -> list[Row]:
    """Return the rows of all success documents with their speeds, then the speeds that no success belongs to."""
    timed = collection.of("rfedge-sweep", "rfedge-latency", "rfedge-precisions")
    speeds = [speed for one in timed for speed in collection.read(one, _speeds(one))]
    rows = [row for one in successes(collection) for row in collection.read(one, _success_rows(one, speeds))]
    for speed in speeds:
        if not any(_fits(speed, row.policy) for row in rows if row.success):
            facts = {key: getattr(speed, key) for key in ("policy", "precision", "size_bytes", "manifest_sha256")}
            rows.append(Row(speed.record, speed.label, facts, speed=speed))
    _name(rows)
    for row in rows:
        names.bundles[row.record, row.label] = row.name
        if row.speed is not None:
            names.bundles[row.speed.record, row.speed.label] = row.name
    return rows


def _success_rows(one: Found, speeds: Sequence[Speed]) -> Iterator[Row]:
    policies = {policy["label"]: policy for policy in one.document["policies"]}
    environment = one.document["conditions"]["environment"]
    for success in one.document["rows"]:
        policy = policies[success["policy"]]
        place = world(environment, success.get("looks"), success["renderer"], success["scene"])
        best: dict[tuple[str, str], Speed] = {}
        # One speed per machine and backend: that of the same record, else of the same manifest, else one with power.
        fitting = [speed for speed in speeds if _fits(speed, policy)]
        for speed in sorted(fitting, key=lambda s: (s.record == one.name, bool(s.manifest_sha256), bool(s.resources))):
            best[str(speed.machine), speed.backend] = speed
        timed: list[Speed | None] = [*best.values()]
        yield from (Row(one.name, policy["label"], policy, place, success, speed) for speed in timed or [None])


def _fits(speed: Speed, policy: Document) -> bool:
    alike = all(getattr(speed, key) == policy[key] for key in ("policy", "precision", "size_bytes"))
    return alike and speed.manifest_sha256 in ("", policy["manifest_sha256"])


def _speeds(one: Found) -> Iterator[Speed]:
    latency, manifests = one.document, dict[str, str]()
    if one.form == "rfedge-sweep":
        latency, success = one.document["latency"], one.document["success"]
        policies = {policy["label"]: policy["manifest_sha256"] for policy in success["policies"]}
        labels = {row["name"]: row["policy"] for row in success["rows"]}
        manifests = {row["variant"]: policies[labels[row["row"]]] for row in one.document["rows"]}
    if one.form == "rfedge-precisions":
        facts = {"policy": latency["policy"], "machine": latency["machine"], "backend": "CPUExecutionProvider"}
        for row in latency["rows"]:
            if row["call_ms"] is not None:
                sizes = {"precision": row["precision"], "size_bytes": row["bundle_bytes"]}
                yield Speed(record=one.name, label=row["name"], manifest_sha256="", call_ms=row["call_ms"], **sizes, **facts)
        return
    for variant in latency["variants"]:
        if variant["role"] == "bundle":
            yield Speed(
                record=one.name,
                label=variant["name"],
                **{key: variant[key] for key in ("policy", "precision", "size_bytes")},
                manifest_sha256=manifests.get(variant["name"], ""),
                machine=latency["machine"],
                backend=variant["settings"].get("providers", "unknown"),
                call_ms=variant["per_call_ms"]["total"],
                execute_steps=latency["conditions"]["execute_steps"],
                resources=variant.get("resources"),
            )


def _name(rows: Sequence[Row]) -> None:
    """Give every bundle one name, whatever each record calls it: its policy's name and its precision."""

    def family(row: Row) -> str:
        return str(row.policy.get("provenance", {}).get("checkpoint_sha256") or row.policy["policy"])

    def stem(row: Row) -> str:
        before, precision, end = row.label.rpartition(row.policy["precision"])
        return before.rstrip("-_ ") if row.success and precision and not end else ""

    def key(row: Row) -> tuple[object, ...]:
        return tuple(row.policy[name] for name in ("policy", "precision", "size_bytes", "manifest_sha256"))

    names: dict[tuple[object, ...], str] = {}
    for row in rows:
        precision = row.policy["precision"]
        shared = max((stem(one) for one in rows if family(one) == family(row)), key=len) or row.policy["policy"]
        rest = precision if row.label.endswith(precision) else row.label
        names.setdefault(key(row), f"{shared} {rest}" if rest.startswith(precision) else row.label)
    counts = Counter(names.values())
    for row in rows:
        row.name = names[key(row)]
        if counts[row.name] > 1:
            row.name += f" ({row.size_bytes / 1e6:.1f} MB{', ' + str(row.policy['manifest_sha256'])[:6]})".replace(
                ", )", ")"
            )


def advice(rows: Sequence[Row], names: Names) -> list[str]:
    """Return which bundle to put on the robot and why, as Markdown.

    Of the record that compares most bundles: the fastest per control step of those whose success is not measurably below the
    reference's; among those within 5 % of its time, the one that surely keeps most.
    """
    timed = [row for row in rows if row.chains is not None and row.speed is not None]
    records = [[row for row in timed if row.record == record] for record in dict.fromkeys(row.record for row in timed)]
    together = max(records, key=lambda some: len({row.name for row in some}), default=[])
    references = [row for row in together if row.success and row.success["paired"] is None]
    if len({row.name for row in together}) < 2 or not references:
        return ["No record compares the success and speed of two bundles yet: run `rfedge bench success` with both."]
    reference = references[0]
    together = [row for row in together if row.speed and reference.speed and row.speed.machine == reference.speed.machine]
    kept = [row for row in together if row is reference or ((ratio := _kept(row)) and ratio["high"] >= 1.0)]
    fastest_ms = min(row.step_ms or 0.0 for row in kept)
    level = [row for row in kept if (row.step_ms or 0.0) <= 1.05 * fastest_ms]
    best = max(level, key=lambda row: (_kept(row) or {"low": 1.0})["low"])
    if best is reference:
        return [f"**Put {best.name} on the robot**: no faster bundle kept its success."]
    if best.chains is None or reference.chains is None or best.speed is None or reference.speed is None:
        raise TypeError("rows without chains or speed")
    ratio, chains = _kept(best) or {}, best.chains
    lengths = [f"{one['average_length']['value']:.2f}" for one in (chains, reference.chains)]
    times = [milliseconds(row.step_ms or 0.0) for row in (best, reference)]
    text = (
        f"**Put {plain(best.name)} on the robot.** It keeps {share(ratio)} of the success of {plain(reference.name)} "
        f"(average length {lengths[0]} of 5 against {lengths[1]} over the same {chains['num_chains']} chains, "
        f"{best.world}), is {_faster(best, reference):.2f} times faster per control step ({times[0]} ms instead of "
        f"{times[1]} ms, median on {names.mark(best.speed.machine)}) and has {best.size_bytes / 1e6:.1f} MB instead of "
        f"{reference.size_bytes / 1e6:.1f} MB."
    )
    others = []
    for row in together:
        if row not in (best, reference) and (kept_share := _kept(row)):
            faster = f"{_faster(row, reference):.2f} times the speed"
            others.append(f"{plain(row.name)} keeps {share(kept_share)} at {faster} and {row.size_bytes / 1e6:.1f} MB")
    caution = f"{chains['num_chains']} chains cannot rule out a loss of {1 - ratio['low']:.0%}.".replace("%", " %")
    beside = f"Compared with it: {'; '.join(others)}." if others else ""
    return [text, " ".join(filter(None, (caution if ratio["low"] < 0.95 else "", beside)))]


def _faster(row: Row, reference: Row) -> float:
    return (reference.step_ms or 0.0) / (row.step_ms or 1.0)


def _kept(row: Row) -> Document | None:
    return row.success["paired"]["average_length_share"] if row.success and row.success["paired"] else None


def bundle_tables(rows: Sequence[Row], names: Names) -> list[Table]:
    """Return success beside speed, power and size, then speeds without success; columns that are empty are left out."""
    captions = {
        True: "Success with its 95 % interval and number of samples, beside speed and size of the same bundle.",
        False: "Timed without a record of success, so nothing is known of its worth.",
    }
    tables = []
    for succeeded, caption in captions.items():
        some = [_cells(row, names) for row in rows if (row.success is not None) is succeeded]
        columns = [name for name in (some[0] if some else ()) if any(_shows(cells[name]) for cells in some)]
        if some:
            tables.append(
                Table(caption, columns, [[cells[name] for name in columns] for cells in some], 2 if succeeded else 1)
            )
    return tables


def _shows(cell: Cell) -> bool:
    return (cell if isinstance(cell, str) else cell[0]) != "-"


def _cells(row: Row, names: Names) -> dict[str, Cell]:
    success, speed, chains, ratio = row.success, row.speed, row.chains, _kept(row)
    scenes, forced = row.policy.get("trained_on"), "; ".join(row.policy.get("forced_past", ()))
    notes = [f"trained on {scenes}"] * bool(scenes) + [f"forced past {forced}"] * bool(forced)
    # In the order of the columns: a phone shows the first three.
    cells: dict[str, Cell] = {
        "bundle": (row.name, "; ".join(notes)),
        "simulator": "-",
        "average length of 5": (interval(chains["average_length"]), row.record) if chains else "-",
        "single tasks": share(success["single_tasks"]["success"]) if success and success["single_tasks"] else "-",
        "call p50 / p99 ms": missing(_NO_SPEED),
        "MB": megabytes(row.size_bytes),
        "of the reference": "-",
        "loop": "-",
        "execute_steps": missing("this record times a call alone") if row.execute_steps is None else str(row.execute_steps),
        "ms per control step": missing(_NO_SPEED),
        "power W": "-",
        "machine": "-",
    }
    if success is not None:
        words = "" if success["language"] == "evaluation" else f", {success['language']} words"
        cells["simulator"] = row.world + words
        cells["loop"] = loop_name(success)
    if ratio and success:
        cells["of the reference"] = share(ratio), f"reference: {names.run(row.record, success['paired']['reference'])}"
    if speed is not None:
        p50, _, p99 = percentiles(speed.call_ms)
        cells["call p50 / p99 ms"] = f"{p50} / {p99}", f"timed in {speed.record}"
        cells["ms per control step"] = "-" if row.step_ms is None else milliseconds(row.step_ms)
        cells["power W"] = _power(speed)
        cells["machine"] = names.mark(speed.machine), speed.backend
    return cells


def _power(speed: Speed) -> Cell:
    meters = (speed.resources or {}).get("power") or ()
    if not meters:
        return missing((speed.resources or {}).get("power_reason") or _NO_POWER)
    watts, per_action = [f"{meter['mean_w']:.1f}" for meter in meters], [meter["joules_per_action"] for meter in meters]
    joules = ", ".join(f"{value:.3f} J per action" for value in per_action if value is not None)
    return ", ".join(watts), f"mean of {', '.join(meter['source'] for meter in meters)}; {joules}"


def plots(rows: Sequence[Row]) -> list[Plot]:
    """Return success over time, over execute_steps where a bundle was run with several, and of every way to run a bundle."""
    found: list[Plot] = []
    for what, y_max in (("average length of 5", 5.0), ("share of single tasks", 1.0)):
        measured = most_rows([row for row in rows if _score(row, what)])
        scored = [(row, score) for row in measured if (score := _score(row, what))]
        places = Counter(row.world for row, _ in scored if row.step_ms is not None)
        by_time, by_steps, bars = list[Point](), list[Point](), dict[str, Bar]()
        for row, score in scored:
            success = row.success or {}
            name = row.name + ("" if success.get("ensemble") is None else ", ensemble")
            name += "" if success["language"] == "evaluation" else f", {success['language']} words"
            heights, k = (score["value"], score["low"], score["high"]), row.execute_steps
            text = f"{score['value']:.2f}, n = {score['n']}"
            bars[f"{name}, {row.world}, k={k}"] = Bar(f"{name}, {row.world}, k={k}", score["value"], text, *heights[1:])
            # One simulator to a plot over time: success in two of them cannot be compared.
            evaluation = success["language"] == "evaluation"
            if evaluation and row.world == max(places, key=lambda place: places[place], default=""):
                by_steps.append(Point(name, float(k or 0), *heights))
                by_time += [] if row.step_ms is None else [Point(name, row.step_ms, *heights, f"k={k}")]
        place = f"in {max(places, key=lambda one: places[one])}" if places else ""
        if by_time:
            caption = f"{what.capitalize()} {place} with 95 % intervals over the median time per control step."
            found.append(plot_points(by_time, "p50 of a call over its control steps, ms", what, y_max, caption, log=True))
        if len(set(by_steps)) > len({point.series for point in by_steps}):
            caption = f"{what.capitalize()} {place} with 95 % intervals over the control steps that one call serves."
            found.append(plot_points(list(dict.fromkeys(by_steps)), "execute_steps", what, y_max, caption))
        if bars:
            caption = f"{what.capitalize()} with 95 % intervals; k is execute_steps, n the number of samples."
            found.append(plot_bars([*bars.values()], what, caption))
    return found


def _score(row: Row, what: str) -> Document | None:
    if row.success is None:
        return None
    single: Document | None = row.success["single_tasks"]
    return (row.chains and row.chains["average_length"]) if "length" in what else (single and single["success"])


def most_rows(rows: Sequence[Row]) -> list[Row]:
    """Leave each way to run a bundle to the record with the most rows, beside which it can be compared chain by chain."""
    sizes, best = Counter(row.record for row in rows), dict[tuple[object, ...], str]()

    def way(row: Row) -> tuple[object, ...]:
        success = row.success or {}
        return row.name, row.world, *(success.get(key) for key in ("mode", "execute_steps", "ensemble", "language"))

    for row in sorted(rows, key=lambda row: -sizes[row.record]):
        best.setdefault(way(row), row.record)
    return [row for row in rows if best[way(row)] == row.record]
