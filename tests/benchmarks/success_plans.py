"""Small policies and a short plan for measurements of success."""

import dataclasses
from pathlib import Path

from rfedge.benchmarks.success.plan import SuccessPlan
from rfedge.config import preset
from tests.benchmarks.seen_world import SeenSimulator
from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle


def write_policy(path: Path, seed: int = 8, **changes: object) -> Path:
    decoder = preset("tiny").decoder.model_dump() | {"text_length": 80}
    requested = str(changes.pop("requested", "fp32"))
    config = tiny_config(**({"chunk_size": 4, "decoder": decoder} | changes))
    blocks = {"vision": requested, "head": "fp32"}
    write_handmade_bundle(path, config, seed=seed, requested=requested, blocks=blocks)
    return path


def plan_of(bundles: tuple[Path, ...], **changes: object) -> SuccessPlan:
    plan = SuccessPlan(bundles, execute_steps=(1, 2), worlds=(SeenSimulator(),), max_steps=40)
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]
