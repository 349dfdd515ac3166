"""Put a policy into the package: its checkpoint in 16 bits, the int8 bundle of that, and a model card.

python tools/ship_policy.py playtable-jump-step CHECKPOINT    writes all three
python tools/ship_policy.py playtable-jump-step               writes the card again

The 16-bit format is the one, of fp16 and bf16, that moves the policy less. The bundle is exported from the shipped
checkpoint, so that the two belong together; without --data on demonstrations of scripted experts, as anyone's export is.
Every number of the card comes from the manifest or from committed records of this checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rfedge.benchmarks.report.markdown import bracketed, grid
from rfedge.bundle.artifact import Bundle, load_bundle
from rfedge.bundle.traces import Episodes, compare_traces
from rfedge.cli.demos.expert_demonstrations import Demonstrations, expert_demonstrations
from rfedge.cli.show.progress import stage_progress
from rfedge.errors import ArtifactError, RfedgeError
from rfedge.export.options import ExportOptions
from rfedge.export.parity import torch_rollout
from rfedge.export.pipeline import export_checkpoint
from rfedge.export.proof import open_frames, proof_inputs
from rfedge.io.atomic import atomic_directory, atomic_file
from rfedge.jobs.progress import StageProgress
from rfedge.model import Checkpoint, checkpoint_sha256, load_checkpoint, save_checkpoint
from rfedge.policies import FOLDER, SHIPPED

ROOT = Path(__file__).parent.parent
CARD = "MODEL_CARD.md"
RESULTS = ROOT / "benchmarks" / "results"
MAX_BYTES = {"checkpoint": 25_000_000, "bundle": 15_000_000}
PARITY_STEPS = 256
_STORAGE_METRICS = ("feature_relative_rms", "action_max_error", "action_mean_error")
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_COLUMNS = (
    "precision",
    "mode",
    "steps per call",
    "scene",
    "words",
    "average length of 5",
    "single tasks",
    "call p50 / p99 ms",
)
_CARD = """# {name}

A RoboFlamingo-style policy for the PlayTable simulator, trained from nothing with this package and compiled to int8. It
comes with rfedge:

```
rfedge run {name}{ensemble} --task open_drawer --video drawer.gif{export}
```

{facts}

## How it was trained

{stages}

## Measured

{measured}

## What it is not for

It has seen one simulated table, one arm, two cameras and the sentences of CALVIN. It knows nothing of the real world: do not
connect it to a robot. Other sentences, tables and cameras are beyond what was measured, unless a row above says so.
"""


def render_card(name: str, bundle: Bundle, storage: dict[str, Any] | None = None) -> str:
    """Return the model card of a shipped policy, with the rows of its checkpoint in every committed record."""
    ours, lines, links, machines = [], {}, {}, {}  # what two records say alike is there once
    for path in (*sorted(RESULTS.glob("sweep_*.json")), *sorted(RESULTS.glob("success_*.json"))):
        document = json.loads(path.read_text())
        report = document.get("success", document)
        latencies = {joined["row"]: joined["per_call_ms"] for joined in document.get("rows", ()) if "row" in joined}
        labels = {
            policy["label"]
            for policy in report["policies"]
            if policy["provenance"].get("checkpoint_sha256") == bundle.manifest.source["checkpoint_sha256"]
        }
        for row in (row for row in report["rows"] if row["policy"] in labels):
            ours.append(row)
            lines[_cells(report["conditions"]["environment"], row, latencies.get(row["name"]))] = None
            links[f"[{path.name}](../../../{path.relative_to(ROOT)})"] = None
            machines[f"{report['machine']['cpu']}, {report['machine']['usable_cores']} cores"] = None
    measured = "Nothing yet."
    if lines:
        where = f"On {'; '.join(machines)}. Intervals are of 95 %."
        measured = f"{grid(_COLUMNS, [*lines])}\n\n{where} Every figure, and the table of all tasks: {', '.join(links)}."
    return _CARD.format(
        name=name,
        ensemble=next((f" --ensemble {row['ensemble']:g}" for row in ours if row["ensemble"] is not None), ""),
        export=f"\nrfedge export {name} --precision int4-weight --output bundle" if storage else "",
        facts=_facts(bundle, storage),
        stages="\n".join(f"1. {stage}" for stage in _stages(bundle.manifest.training)),
        measured=measured,
    )


def _facts(bundle: Bundle, storage: dict[str, Any] | None) -> str:
    policy, manifest = bundle.policy, bundle.manifest
    cameras = f"static 200 x 200 and gripper 84 x 84{', arm pose and gripper command' if policy.proprioception else ''}"
    parity = manifest.parity
    facts: dict[str, object] = {
        "preset": policy.name,
        "reads": f"{cameras}, every {policy.frame_stride} control steps, and an instruction",
        "says": f"{policy.chunk_size} actions a call: relative pose and gripper, {policy.control_hz:g} Hz",
        "head": f"{policy.head.kind}, {policy.time_keeping} of {policy.window} frames",
        "size": f"{bundle.size_bytes / 1e6:.1f} MB, {manifest.precision.requested}",
        "against PyTorch": f"feature cosine {parity.metrics['min_feature_cosine']:.5f}, action error "
        f"{parity.metrics['action_max_error']:.2g} at worst in {parity.num_steps} steps",
        "checkpoint": storage
        and f"{storage['size_bytes'] / 1e6:.1f} MB in {storage['dtype']}, action error {storage['action_max_error']:.2g} at "
        f"worst in {storage['num_steps']} steps",
        "made with": f"rfedge {manifest.versions.get('rfedge', '')}, PyTorch {manifest.versions.get('torch', '')}",
    }
    return grid(("", ""), [(name, fact) for name, fact in facts.items() if fact is not None])


def _stages(training: dict[str, Any] | None) -> Iterator[str]:
    """One sentence a stage, from the first to the last."""
    if training is None:
        return
    yield from _stages(training.get("initial"))
    if (seen := training.get("pretraining")) is not None:
        measured, minutes = seen["validation"], seen["seconds"] / 60
        yield (
            f"`rfedge pretrain`: {seen['num_frames']} frames; {seen['steps']} steps of {seen['batch_size']}, {minutes:.0f} "
            f"minutes, seed {seen['seed']}, peak learning rate {seen['learning_rate']:g}. Median errors, held-out frames: "
            f"{measured['validation_block_median_mm']:.0f} mm of a block's place by the static camera, "
            f"{measured['validation_reach_median_mm']:.0f} mm of the way from the gripper to a near block by the gripper's, "
            f"{measured['validation_turn_median_rad']:.2f} rad of its turn."
        )
    if (taught := training.get("training")) is not None:
        data, result = training["dataset"], training["result"]
        held_out = result["validation_loss"]  # none where the stage was stopped by hand
        yield (
            f"`rfedge train`: {data['num_segments']} demonstrations of {len(data['tasks'])} tasks in scene "
            f"{', '.join(data['scenes'])}, {data['num_frames']} frames; {result['steps']} steps of {taught['batch_size']} "
            f"windows, {result['seconds'] / 60:.0f} minutes, seed {taught['seed']}, peak learning rate "
            f"{taught['learning_rate']:g}, trainable {taught['trainable']}. Loss {result['first_loss']:.4f} to "
            f"{result['last_loss']:.4f}" + ("." if held_out is None else f", held out {held_out:.4f}.")
        )


def _cells(environment: str, row: dict[str, Any], call_ms: dict[str, Any] | None) -> tuple[str, ...]:
    chains, tasks = row["chains"], row["single_tasks"]
    return (
        row["precision"],
        row["kind"] + ("" if row["ensemble"] is None else f", ensemble {row['ensemble']:g}"),
        str(row["execute_steps"]),
        f"{environment} {row['scene']}",
        row["language"],
        f"{bracketed(chains['average_length'])} over {chains['num_chains']} chains" if chains else "-",
        f"{bracketed(tasks['success'])} of {tasks['success']['n']}" if tasks else "-",
        "-" if call_ms is None else f"{call_ms['p50']:.1f} / {call_ms['p99']:.1f}",
    )


def store_checkpoint(source: Path, target: Path, data: Path) -> dict[str, Any]:
    """Write the checkpoint at `source` to `target` in 16 bits and return what its metadata says of them."""
    checkpoint = load_checkpoint(source)
    frames = open_frames(checkpoint, data)
    rng = np.random.default_rng(0)
    episodes, described = proof_inputs(checkpoint.config, frames, [], num_steps=PARITY_STEPS, seed=0, rng=rng)
    moved = {name: _moved(checkpoint, source, dtype, episodes) for name, dtype in _DTYPES.items()}
    name = min(moved, key=lambda name: moved[name]["feature_relative_rms"])
    size_bytes = sum(
        tensor.numel() * (2 if tensor.is_floating_point() else tensor.element_size())
        for tensor in checkpoint.policy.state_dict().values()
    )
    if size_bytes > MAX_BYTES["checkpoint"]:
        raise _too_large("checkpoint", size_bytes)
    storage: dict[str, Any] = {
        "dtype": name,
        "size_bytes": size_bytes,
        "num_steps": sum(map(len, episodes)),
        "inputs": described,
        "of_checkpoint_sha256": checkpoint_sha256(source),
        **{metric: moved[name][metric] for metric in _STORAGE_METRICS},
    }
    metadata = {**checkpoint.metadata, "storage": storage}
    save_checkpoint(target, checkpoint.policy, checkpoint.tokenizer, metadata, dtype=_DTYPES[name], overwrite=True)
    return storage


def _moved(checkpoint: Checkpoint, source: Path, dtype: torch.dtype, episodes: Episodes) -> dict[str, float]:
    """Return how far the policy moves when its weights are rounded; infinitely where one of them is beyond the format."""
    rounded = load_checkpoint(source).policy
    weights = {
        name: tensor.to(dtype).to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in rounded.state_dict().items()
    }
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        return dict.fromkeys(_STORAGE_METRICS, float("inf"))
    rounded.load_state_dict(weights, assign=True)
    return compare_traces(torch_rollout(checkpoint.policy, episodes), torch_rollout(rounded, episodes))


def _too_large(what: str, size_bytes: int) -> ArtifactError:
    most = MAX_BYTES[what]
    return ArtifactError(what, got=f"{size_bytes} bytes", expected=f"at most {most}", remedy="Train a smaller one.")


def ship(name: str, source: Path, demonstrations: Demonstrations, *, progress: StageProgress) -> None:
    """Write checkpoint and bundle of a policy into the package."""
    options = ExportOptions(
        precision="int8",
        data=demonstrations.folder,
        data_description=demonstrations.description,
        num_parity_steps=PARITY_STEPS,
    )
    # Neither is replaced before both are there.
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix=f".{name}-") as folder:
        made = Path(folder)
        progress("16 bits", 0, 1)
        store_checkpoint(source, made / "checkpoint", demonstrations.folder)
        progress("16 bits", 1, 1)
        bundle = export_checkpoint(made / "checkpoint", made / "bundle", options, progress=progress)
        if bundle.size_bytes > MAX_BYTES["bundle"]:
            raise _too_large("bundle", bundle.size_bytes)
        for part in ("checkpoint", "bundle"):
            with atomic_directory(FOLDER / name / part, overwrite=True) as target:
                shutil.copytree(made / part, target, dirs_exist_ok=True)


def write_card(name: str) -> None:
    """Write the card of what the package holds."""
    folder = FOLDER / name
    with atomic_file(folder / CARD) as temporary:
        temporary.write_text(render_card(name, load_bundle(folder / "bundle"), stored(name)))


def stored(name: str) -> dict[str, Any] | None:
    """Return what the metadata of a shipped checkpoint says of its storage; None where there is no checkpoint."""
    path = FOLDER / name / "checkpoint" / "config.json"
    return dict(json.loads(path.read_text())["metadata"]["storage"]) if path.exists() else None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=SHIPPED)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--data", type=Path, help="demonstrations for calibration and proof; scripted experts' without")
    options = parser.parse_args()
    try:
        if options.checkpoint is not None:
            with stage_progress() as progress:
                given = None if options.data is None else Demonstrations(options.data, f"--data {options.data.name}")
                ship(options.name, options.checkpoint, given or expert_demonstrations(progress), progress=progress)
        write_card(options.name)
    except RfedgeError as error:
        sys.exit(f"ship_policy: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
