"""The output folder of a run: one run at a time writes to it, and it must have the room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn

from rfedge.errors import ArtifactError
from rfedge.io.atomic import claimed
from rfedge.io.disk import check_room
from rfedge.train.config import TrainConfig
from rfedge.train.distributed import Processes


@contextmanager
def claimed_by_first(output: Path, processes: Processes) -> Iterator[None]:
    """Keep other runs out of `output`; every process of this one raises what the first one met."""
    with ExitStack() as stack:
        raise_together(processes, lambda: stack.enter_context(claimed(output)))
        yield


def raise_together(processes: Processes, check: Callable[[], object]) -> None:
    """Let the first process check, and every process raise the ArtifactError that it met."""
    refusal = ""
    try:
        if processes.is_first:
            check()
    except ArtifactError as error:
        refusal = str(error)
    if refusal := processes.agree(refusal):
        raise ArtifactError(refusal)


def check_training_room(
    config: TrainConfig, policy: nn.Module, trained: list[tuple[str, torch.nn.Parameter]], *, goes_on: bool
) -> None:
    """Look for the room of checkpoint and states before the steps; a run that goes on has most of it already.

    Raises:
        ArtifactError: it is not there.
    """
    whole_bytes = sum(tensor.numel() * tensor.element_size() for tensor in policy.state_dict().values())
    state_bytes = whole_bytes + sum(2 * parameter.numel() * parameter.element_size() for _, parameter in trained)
    num_states = 1 if goes_on else config.keep_states + 1
    check_room(config.output, whole_bytes + num_states * state_bytes, what="checkpoint and training states")
