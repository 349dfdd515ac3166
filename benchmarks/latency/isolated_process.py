"""One variant of a policy in a process of its own, which calls it when it is asked to: so two processes take turns.

A call is one of the policy: camera resize, backbone, head in its steady state.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rfedge.contract import policy_contract
from rfedge.messages import Observation, PolicyState
from rfedge.recurrence import initial_state
from rfedge.runtimes.backends.base import RuntimeSettings
from rfedge.runtimes.backends.registry import open_parts
from rfedge.runtimes.policy.edge_policy import EdgePolicy


@dataclass(frozen=True)
class ProcessJob:
    """One variant for one process to measure."""

    path: Path  # bundle, or checkpoint for `backend` "torch"
    backend: str
    instruction: str
    threads: int
    seed: int
    graph: Path | None = None  # run this backbone graph instead of the bundle's
    torch_dtype: str = "float32"  # or "bfloat16"


def load_variant(job: ProcessJob) -> tuple[int, float]:
    """Load it and call it once untimed; return the tokens of its instruction, and the seconds that this took."""
    started_s = time.perf_counter()
    num_tokens, call = _variant(job)
    call()
    return num_tokens, time.perf_counter() - started_s


def call_variant(job: ProcessJob) -> dict[str, float]:
    """Return the milliseconds of one call by stage."""
    return dict(_variant(job)[1]())


@functools.cache  # a process has one
def _variant(job: ProcessJob) -> tuple[int, Callable[[], Mapping[str, float]]]:
    settings = RuntimeSettings(threads=job.threads, verify=False, torch_dtype=job.torch_dtype)
    parts = open_parts(job.backend, job.path, settings)
    if job.graph is not None:
        from rfedge.runtimes.backends.ort import OrtRunner

        backbone = OrtRunner("backbone", job.graph, policy_contract(parts.config).backbone, settings)
        parts = dataclasses.replace(parts, backbone=backbone)
    rng = np.random.default_rng(job.seed)
    observation = Observation(
        rng.integers(0, 256, (200, 200, 3), np.uint8), rng.integers(0, 256, (84, 84, 3), np.uint8), np.zeros(15, np.float32)
    )
    policy = EdgePolicy(parts)
    state = _steady_state(policy)
    num_tokens = int(parts.encoder(job.instruction).mask.sum())
    return num_tokens, lambda: policy.infer(observation, job.instruction, state).timings_ms


def _steady_state(policy: EdgePolicy) -> PolicyState:
    """Return a state in which the window is full, so that every call reads it as it would for the rest of a task."""
    config = policy.config
    fresh = initial_state(config)
    past = (config.media_frames - 1, *fresh.media.shape[1:])
    features = config.window if config.head.kind == "gpt" else 0
    return dataclasses.replace(
        fresh,
        history=np.zeros((features, config.feature_size), np.float32),
        media=np.zeros(past, np.float32),
        num_steps=config.window,
    )
