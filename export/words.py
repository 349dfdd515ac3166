"""The decoder blocks before the first cross-attention, run once for each sentence of a fixed list instead of every call.

Where cross-attention stands before every n-th block, n - 1 blocks come first, 1 of 32 in G-4B and 3 of 32 in the 9B models.
What they return depends on the words alone, so a bundle of `--instructions` stores it in place of embedded tokens, and its
graphs begin behind them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from rfedge.arrays import Float32
from rfedge.model import RoboFlamingo
from rfedge.model.decoder import FusionDecoder, FusionLayer

Ids = npt.NDArray[np.int64]


class Words:
    """Embedded tokens -> what the first cross-attention reads, in PyTorch."""

    def __init__(self, decoder: FusionDecoder) -> None:
        live = len(decoder.layers) - (decoder.feature == "last_block_input")
        layers = itertools.islice(cast("Iterable[FusionLayer]", decoder.layers), live)
        leading = itertools.takewhile(lambda layer: layer.cross_attention is None, layers)
        self._blocks = [layer.block for layer in leading]  # the rest of the decoder is not kept alive
        self._bias: torch.Tensor = decoder.bias
        self._rotary: torch.Tensor | None = decoder.rotary

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    @torch.no_grad()
    def __call__(self, embedding: Float32) -> Float32:
        """float32 (1, T, D), no padding -> float32 (1, T, D)."""
        x, length = torch.from_numpy(embedding), embedding.shape[1]
        for block in self._blocks:
            x = block(x, self._bias[:, :length, :length], None if self._rotary is None else self._rotary[:, :length])
        states: Float32 = x.numpy()
        return states

    def states(self, token_ids: Sequence[Ids], table: Float32) -> tuple[list[Ids], Float32]:
        """Return the rows of each sentence, without padding, and the states (row, D); like beginnings share rows."""
        rows: dict[tuple[int, ...], int] = {}
        states: list[Float32] = []
        places = []
        for ids in token_ids:
            # Attention is causal: a state depends on the tokens up to its own.
            beginnings = [tuple(ids[: end + 1].tolist()) for end in range(len(ids))]
            for beginning, state in zip(beginnings, self(table[ids][None])[0], strict=True):
                if beginning not in rows:
                    rows[beginning] = len(states)
                    states.append(state)
            places.append(np.array([rows[beginning] for beginning in beginnings]))
        return places, np.stack(states)


def words_before_media(policy: RoboFlamingo) -> Words | None:
    """Return the blocks of a policy that read words alone; None where cross-attention stands before the first."""
    words = Words(policy.backbone.decoder)
    return words if words.num_blocks else None
