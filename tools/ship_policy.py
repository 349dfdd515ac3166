"""Put a bundle into the package with its model card, every number of which comes from its manifest and committed records.

python tools/ship_policy.py playtable-jump-step BUNDLE    copies the bundle and writes the card
python tools/ship_policy.py playtable-jump-step           writes the card again
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rfedge.atomic import atomic_directory, atomic_file
from rfedge.benchmarks.success_report import ensemble_suffix
from rfedge.bundle import Bundle, load_bundle
from rfedge.errors import explain
from rfedge.policies import CLOSED_LOOP, JUMP_STEP, find_bundle

ROOT = Path(__file__).parent.parent
CARD = "MODEL_CARD.md"
RESULTS = ROOT / "benchmarks" / "results"
RECORD = RESULTS / "sweep_playtable-d_cpu_202611.json"
SUCCESS_RECORDS = (
    RESULTS / "success_playtable-d_cpu_202611.json",  # more chains
    RESULTS / "success_playtable-d_enriched_cpu_202611.json",  # other words
    RESULTS / "success_calvin-d_cpu_202611.json",  # another simulator
)
LABELS = {CLOSED_LOOP: "closed-loop-int8", JUMP_STEP: "jump-step-int8"}  # in the records
MAX_BYTES = 15_000_000
_COLUMNS = ("mode", "steps a call", "scene", "words", "average length of 5", "single tasks", "call p50 / p99 ms")
_TABLE_HEAD = f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}"
_CARD = """# {name}

A RoboFlamingo-style policy for the PlayTable simulator, trained from nothing with this package and compiled to int8. It
comes with rfedge:

```
rfedge run {name}{ensemble} --task open_drawer --video drawer.gif
```

{facts}

## How it was trained

{stages}

## Measured

{table}

On {machine}. Intervals are of 95 %. Every figure, and the table of all tasks: {links}.

## What it is not for

It has seen one simulated table, one arm, two cameras and the sentences of CALVIN. It knows nothing of the real world: do not
connect it to a robot. Other sentences, tables and cameras are beyond what was measured, unless a row above says so.
"""


def render_card(name: str, bundle: Bundle) -> str:
    """Return the model card of a shipped policy, with its rows of every record."""
    label = LABELS[name]
    sweep = json.loads(RECORD.read_text())
    reports = {RECORD: sweep["success"]} | {path: json.loads(path.read_text()) for path in SUCCESS_RECORDS}
    latencies = {joined["row"]: joined["per_call_ms"] for joined in sweep["rows"]}
    ours, lines, links = [], {}, {}  # what two records tell alike is there once
    for path, report in reports.items():
        for row in (row for row in report["rows"] if row["policy"] == label):
            ours.append(row)
            call_ms = latencies[row["name"]] if path == RECORD else None
            lines[_table_line(report["conditions"]["environment"], row, call_ms)] = None
            links[f"[{path.name}](../../../{path.relative_to(ROOT)})"] = None
    machine = sweep["success"]["machine"]
    return _CARD.format(
        name=name,
        ensemble=_ensemble(ours),
        facts=_facts(bundle),
        stages="\n".join(f"1. {stage}" for stage in _stages(bundle.manifest.training)),
        table="\n".join([_TABLE_HEAD, *lines]),
        machine=f"{machine['cpu']}, {machine['usable_cores']} cores",
        links=", ".join(links),
    )


def _ensemble(rows: list[dict[str, Any]]) -> str:
    """Return the flag of the first ensemble that was measured, or nothing."""
    decays = [row["ensemble"] for row in rows if row["ensemble"] is not None]
    return f" --ensemble {decays[0]:g}" if decays else ""


def _facts(bundle: Bundle) -> str:
    policy, manifest = bundle.policy, bundle.manifest
    cameras = f"static 200 x 200 and gripper 84 x 84{', arm pose and gripper command' if policy.proprioception else ''}"
    parity = manifest.parity
    facts = {
        "preset": policy.name,
        "reads": f"{cameras}, every {policy.frame_stride} control steps, and an instruction",
        "says": f"{policy.chunk_size} actions a call: relative pose and gripper, {policy.control_hz:g} Hz",
        "head": f"{policy.head.kind}, {policy.time_keeping} of {policy.window} frames",
        "size": f"{bundle.size_bytes / 1e6:.1f} MB, {manifest.precision.requested}",
        "against PyTorch": f"feature cosine {parity.metrics['min_feature_cosine']:.5f}, action error "
        f"{parity.metrics['action_max_error']:.2g} at worst in {parity.num_steps} steps",
        "made with": f"rfedge {manifest.versions.get('rfedge', '')}, PyTorch {manifest.versions.get('torch', '')}",
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in facts.items())


def _stages(training: dict[str, Any] | None) -> Iterator[str]:
    """One sentence a stage, from the first to the last."""
    if training is None:
        return
    yield from _stages(training.get("initial"))
    if (seen := training.get("pretraining")) is not None:
        measured, minutes = seen["validation"], seen["seconds"] / 60
        yield (
            f"`rfedge pretrain`: {seen['num_frames']} frames; {seen['steps']} steps of {seen['batch_size']}, {minutes:.0f} "
            f"minutes, seed {seen['seed']}, highest rate {seen['learning_rate']:g}. Half of the places that it says of "
            f"held-out frames are within {measured['validation_median_mm']:.0f} mm; the mean error is "
            f"{measured['validation_location_mm']:.0f} mm."
        )
    if (taught := training.get("training")) is not None:
        data, result = training["dataset"], training["result"]
        yield (
            f"`rfedge train`: {data['num_segments']} demonstrations of {len(data['tasks'])} tasks in scene "
            f"{', '.join(data['scenes'])}, {data['num_frames']} frames; {result['steps']} steps of {taught['batch_size']} "
            f"windows, {result['seconds'] / 60:.0f} minutes, seed {taught['seed']}, highest rate "
            f"{taught['learning_rate']:g}, trainable {taught['trainable']}. Loss {result['first_loss']:.4f} to "
            f"{result['last_loss']:.4f}, held out {result['validation_loss']:.4f}."
        )


def _table_line(environment: str, row: dict[str, Any], call_ms: dict[str, Any] | None) -> str:
    chains, tasks = row["chains"], row["single_tasks"]
    cells = (
        row["kind"] + ensemble_suffix(row["ensemble"]),
        str(row["execute_steps"]),
        f"{environment} {row['scene']}",
        row["language"],
        _interval(chains["average_length"], f" over {chains['num_chains']} chains") if chains else "-",
        _interval(tasks["success"], f" of {tasks['success']['n']}") if tasks else "-",
        "-" if call_ms is None else f"{call_ms['p50']:.1f} / {call_ms['p99']:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _interval(value: dict[str, Any], what: str) -> str:
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]{what}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=LABELS)
    parser.add_argument("bundle", type=Path, nargs="?", default=None)
    options = parser.parse_args()
    shipped = find_bundle(Path(options.name))
    bundle = load_bundle(options.bundle or shipped)
    if bundle.size_bytes > MAX_BYTES:
        sys.exit(explain("bundle", got=f"{bundle.size_bytes} bytes", expected=f"at most {MAX_BYTES}", remedy="Use int8."))
    if options.bundle is not None:
        with atomic_directory(shipped, overwrite=True) as folder:
            shutil.copytree(options.bundle, folder, ignore=shutil.ignore_patterns("engines"), dirs_exist_ok=True)
    with atomic_file(shipped.with_name(CARD)) as temporary:
        temporary.write_text(render_card(options.name, bundle))
    return 0


if __name__ == "__main__":
    sys.exit(main())
