"""A linear probe that reads the task off a policy's feature, for the training alone.

Its cross-entropy asks the decoder to understand an instruction from the first step on, however it is worded; the actions
alone say so only where two tasks move differently. Measured: docs/adr/0016-instructions-from-a-grammar.md.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn
from torch.nn import functional

from rfedge.model import RoboFlamingo

# Name of the probe as a part of the policy: it learns and is saved with it, and is in no checkpoint.
TASK_PROBE: Final = "task_probe"


def attach_task_probe(policy: RoboFlamingo, num_tasks: int, seed: int) -> None:
    """Give a policy a probe for tasks 0 to `num_tasks` - 1, initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy.add_module(TASK_PROBE, nn.Linear(policy.config.feature_size, num_tasks))


def task_loss(policy: RoboFlamingo, features: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor | None:
    """Mean cross-entropy, nats, of features (N, D) of tasks int64 (N,); None where the policy has no probe."""
    probe = getattr(policy, TASK_PROBE, None)
    return None if probe is None else functional.cross_entropy(probe(features).float(), tasks)
