"""Resident memory of a policy, each loaded in a process of its own."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Final

import psutil

from rfedge.benchmarks.latency.run import LatencyPlan
from rfedge.jobs.processes import run_jobs
from rfedge.runtimes.backends.registry import import_backend
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.rollout.policy_source import TorchPolicy

_OTHER_PROCESS: Final = 2  # workers: one would be this process, and of two a single job needs one


def loaded_bytes(plan: LatencyPlan) -> tuple[int, ...]:
    """Return by how much loading each policy makes a process grow whose libraries are imported, bundles first."""
    call = functools.partial(_load, plan)
    return tuple(found for policy in (*plan.bundles, *plan.torch) for _, found in run_jobs(call, [policy], _OTHER_PROCESS))


def _load(plan: LatencyPlan, policy: Path | TorchPolicy) -> int:
    process = psutil.Process()
    if isinstance(policy, TorchPolicy):
        importlib.import_module("rfedge.model")  # and PyTorch with it
        before = process.memory_info().rss
        opened = policy.open(plan.settings)
    else:
        import_backend(plan.backend)
        before = process.memory_info().rss
        opened = EdgePolicy.load(policy, backend=plan.backend, settings=plan.settings)
    with opened:
        return process.memory_info().rss - before
