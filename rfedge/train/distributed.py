"""Several processes, one run: who this process is, which part of a batch it takes, and what it sends to the others.

Every process samples the same batch of windows and takes its own part of it, so that the number of processes changes the
order in which numbers are added up and nothing else. `torchrun` (or anything that sets RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT) starts them.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from rfedge.errors import BackendUnavailableError, ConfigError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

# How long processes wait for each other inside a step; `alone` waits as long as it takes.
_TIMEOUT: Final = timedelta(minutes=30)
_POLL_S: Final = 0.05
# Separates the samples of dropout from those of windows and shifts, which come from the same seed.
_DROPOUT_STREAM: Final = 4
# What gloo says in a plain RuntimeError when the process at the other end is gone.
_SIGNS_OF_LOSS: Final = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "[gloo]", "gloo/transport")


# All processes count alike, since all come to the same places in the same order.
_turns = itertools.count()


class Processes:
    """This process among those of a run; one process alone needs no group."""

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0, store: Store | None = None) -> None:
        self.rank = rank  # of this process, 0 to world_size - 1; the first one writes all files
        self.world_size = world_size
        self.local_rank = local_rank  # of this process among those of its machine
        # whether torchrun has started this process again, after one was lost
        self.restarted = _number("TORCHELASTIC_RESTART_COUNT", 0) > 0
        self._store = store

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def parts(self, total: int, accumulate: int = 1) -> list[slice]:
        """Return what this process takes of `total` items, in as many passes as `accumulate` says; some may be empty."""
        bounds = [total * part // (self.world_size * accumulate) for part in range(self.world_size * accumulate + 1)]
        first = self.rank * accumulate
        return [slice(bounds[part], bounds[part + 1]) for part in range(first, first + accumulate)]

    def shares(self, items: Sequence[T], size: int) -> Iterator[tuple[Sequence[T], bool]]:
        """Yield this process's part of every `size` items, and whether it counts."""
        for first in range(0, len(items), size):
            batch = items[first : first + size]
            (part,) = self.parts(len(batch))
            # All must compute as often: a process for which nothing is left gets an item that it does not count.
            yield (batch[part], True) if batch[part] else (batch[:1], False)

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """Return the sums over all processes; every process must call it with the same names in the same order."""
        if self.world_size == 1:
            return values
        totals = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(totals)
        return dict(zip(values, totals.tolist(), strict=True))

    def agree(self, text: str) -> str:
        """Return the first process's `text` in every process."""
        if self.world_size == 1:
            return text
        # As bytes: PyTorch sends other objects as pickles, and what is unpickled may be code.
        size = torch.tensor([len(text.encode())])
        dist.broadcast(size, src=0)
        encoded = torch.empty(int(size), dtype=torch.uint8)
        if self.is_first:
            encoded = torch.tensor(list(text.encode()), dtype=torch.uint8)
        dist.broadcast(encoded, src=0)
        return bytes(encoded.tolist()).decode()

    def exchange_rows(self, table: torch.Tensor, shares: list[tuple[int, int]]) -> None:
        """Fill `table` in every process with the rows that each one made, from its share's first to before its last."""
        for rank, (first, last) in enumerate(shares):
            if first < last:
                dist.broadcast(table[first:last], src=rank)

    def copy_from_first(self, parameters: Iterable[torch.Tensor]) -> None:
        """Give every process the first one's parameters, in place."""
        if self.world_size > 1:
            for parameter in parameters:
                dist.broadcast(parameter.detach(), src=0)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world_size > 1:
            dist.all_reduce(torch.zeros(1))  # on the CPU, where a barrier would choose a GPU

    @contextmanager
    def rank0_first(self) -> Iterator[None]:
        """Let the first process do what is done once (build a cache), then one of each machine, then the others."""
        if self._store is None:
            yield
            return
        turn, machine = f"rfedge/turn-{next(_turns)}", os.environ.get("GROUP_RANK", "0")
        waits_for = f"{turn}/first" if self.local_rank == 0 else f"{turn}/machine-{machine}"
        while not self.is_first and not self._store.check([waits_for]):
            time.sleep(_POLL_S)  # not in the store's own wait, which no signal ends
        try:
            yield
        finally:  # what fails in one process does not stop the next ones: they meet the same error
            if self.is_first:
                self._store.set(f"{turn}/first", "done")
            if self.local_rank == 0:
                self._store.set(f"{turn}/machine-{machine}", "done")

    def seed_dropout(self, seed: int, step: int) -> None:
        """Give each process its own random numbers for `step`, so that no two windows of a batch get the same mask."""
        # From the step alone, so a resumed run repeats them. One process goes on with one stream, which its states hold.
        if self.world_size > 1:
            torch.manual_seed(int(np.random.SeedSequence([seed, step, self.rank, _DROPOUT_STREAM]).generate_state(1)[0]))

    @contextmanager
    def translate_peer_failure(self) -> Iterator[None]:
        """Turn what the survivors of a lost process get to see into one sentence."""
        try:
            yield
        except RuntimeError as error:
            is_lost = isinstance(error, dist.DistError) or any(sign in str(error) for sign in _SIGNS_OF_LOSS)
            if self.world_size == 1 or not is_lost:
                raise
            got = "no connection to it any more"
            expected = f"all {self.world_size} processes"
            remedy = "Repeat the command, with as many processes as you like: the run goes on from its newest state."
            raise BackendUnavailableError("another process of this run", got=got, expected=expected, remedy=remedy) from None


@contextmanager
def join(device: str) -> Iterator[Processes]:
    """Join the processes that the environment names, and leave them at the end; without WORLD_SIZE there is but this one.

    Raises ConfigError where the environment lacks a part, BackendUnavailableError where there are fewer GPUs than processes.
    """
    if dist.is_available() and dist.is_initialized():  # by a caller who also leaves
        yield _joined()
        return
    if _number("WORLD_SIZE", 1) == 1:
        yield Processes()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        got = f"no {', '.join(missing)}"
        expected = "the environment that torchrun makes"
        remedy = "Start with `torchrun --standalone --nproc-per-node N -m rfedge train ...`, or unset WORLD_SIZE."
        raise ConfigError(f"WORLD_SIZE={os.environ['WORLD_SIZE']}", got=got, expected=expected, remedy=remedy)
    local_rank = _number("LOCAL_RANK", 0)
    if device.startswith("cuda"):
        if device != "cuda":
            expected = "cuda, of which every process takes the GPU of its local rank"
            remedy = "Leave the number out; CUDA_VISIBLE_DEVICES chooses GPUs."
            raise ConfigError("device", got=repr(device), expected=expected, remedy=remedy)
        if local_rank >= torch.cuda.device_count():
            got = f"{torch.cuda.device_count()} CUDA GPUs that PyTorch can use"
            expected = f"one for each process, {local_rank + 1} or more"
            remedy = "Start fewer processes, or pass --device cpu."
            raise BackendUnavailableError("device", got=got, expected=expected, remedy=remedy)
        torch.cuda.set_device(local_rank)
    # Numbers and texts go through gloo either way: they are on the CPU, and need no GPU to wait for.
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, world_size = next(rendezvous("env://", timeout=_TIMEOUT))
    # torchrun keeps its store over a restart: a process that was started again would look for the others where they were.
    start = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}-of-{os.environ['WORLD_SIZE']}"
    store = PrefixStore(f"rfedge/start-{start}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT)
    try:
        yield _joined()
    finally:
        dist.destroy_process_group()


def _joined() -> Processes:
    from torch.distributed.distributed_c10d import _get_default_store

    return Processes(dist.get_rank(), dist.get_world_size(), _number("LOCAL_RANK", 0), _get_default_store())


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(
            name, got=repr(text), expected="a number, as torchrun sets it", remedy="Unset it, or start with torchrun."
        )
    return int(text)
