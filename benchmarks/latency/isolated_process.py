"""One variant of a policy, timed in a process of its own.

    python -m rfedge.benchmarks.latency.isolated_process '{"path": ..., ...}'

Writes a line when it has loaded. Each line that it reads is a call, answered by a line: so two processes take turns. At the
end of its input it writes one JSON document. A call is one of the policy: camera resize, backbone, head in its steady state.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rfedge.contract import policy_contract
from rfedge.messages import Observation, PolicyState
from rfedge.records.machine import peak_rss_bytes
from rfedge.records.record import Record
from rfedge.recurrence import initial_state
from rfedge.runtimes.backends.base import PolicyParts, RuntimeSettings
from rfedge.runtimes.backends.registry import open_parts
from rfedge.runtimes.policy.edge_policy import EdgePolicy


class ProcessJob(Record):
    """One variant for one process to measure.

    Attributes:
        path: bundle, or checkpoint for `backend` "torch".
        graph: run this backbone graph instead of the bundle's.
        torch_dtype: "float32" or "bfloat16".
    """

    path: Path
    backend: str
    graph: Path | None = None
    torch_dtype: str = "float32"
    instruction: str
    threads: int
    seed: int


class ProcessResult(Record):
    """Milliseconds of every timed call, and what loading cost."""

    call_ms: tuple[float, ...]
    backbone_ms: tuple[float, ...]
    head_ms: tuple[float, ...]
    num_tokens: int
    load_s: float
    peak_bytes: int | None


def run_job(job: ProcessJob, turns: Iterator[object]) -> ProcessResult:
    """Load the variant, call it once untimed, then time one call for each of `turns`."""
    settings = RuntimeSettings(threads=job.threads, verify=False, torch_dtype=job.torch_dtype)
    started = time.perf_counter()
    parts = open_parts(job.backend, job.path, settings)
    if job.graph is not None:
        parts = _with_graph(parts, job.graph, settings)
    rng = np.random.default_rng(job.seed)
    observation = Observation(
        rng.integers(0, 256, (200, 200, 3), np.uint8), rng.integers(0, 256, (84, 84, 3), np.uint8), np.zeros(15, np.float32)
    )
    with EdgePolicy(parts) as policy:
        state = _steady_state(policy)
        num_tokens = int(parts.encoder(job.instruction).mask.sum())
        policy.infer(observation, job.instruction, state)
        load_s = time.perf_counter() - started
        timings = [policy.infer(observation, job.instruction, state).timings_ms for _ in turns]
    return ProcessResult(
        call_ms=tuple(timing["total"] for timing in timings),
        backbone_ms=tuple(timing["backbone"] for timing in timings),
        head_ms=tuple(timing["head"] for timing in timings),
        num_tokens=num_tokens,
        load_s=load_s,
        peak_bytes=peak_rss_bytes(),
    )


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


def _with_graph(parts: PolicyParts, graph: Path, settings: RuntimeSettings) -> PolicyParts:
    from rfedge.runtimes.backends.ort import OrtRunner

    contract = policy_contract(parts.config).backbone
    return dataclasses.replace(parts, backbone=OrtRunner("backbone", graph, contract, settings))


def _turns() -> Iterator[str]:
    """Yield a line of the input for each call; the next one, or the end, answers it."""
    _write_line("")
    for line in sys.stdin:
        yield line
        _write_line("")


def _write_line(text: str) -> None:
    _answers.write(text + "\n")
    _answers.flush()


if __name__ == "__main__":
    # What a library prints goes to stderr: a line on the pipe is an answer.
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _write_line(run_job(ProcessJob.model_validate_json(sys.argv[1]), _turns()).model_dump_json())
