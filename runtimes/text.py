"""Instructions as the backbone wants them: embedded once, then reused on every step.

The embedding table is the largest thing of a small policy (206 MB for MPT-1B in fp16) and an instruction reads a
dozen of its rows, so the table stays in the file, memory-mapped, and never enters the engine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from rfedge.bundle import EMBEDDING_SCALE, EMBEDDING_TENSOR
from rfedge.errors import ArtifactError, explain
from rfedge.tokenizer import InstructionTokenizer

__all__ = ["EmbeddedInstruction", "EmbeddingTable", "InstructionEncoder"]

# A chain has 5 instructions and the whole benchmark 34; a server's clients can send any text, so the cache is bounded.
MAX_CACHED_INSTRUCTIONS: Final = 256


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedInstruction:
    """One instruction, ready for the backbone; its arrays are read-only because calls share them.

    Attributes:
        embedding: float32 (1, token, width); padded only for a graph with a static number of tokens.
        mask: bool (1, token), true on real tokens.
    """

    embedding: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]


class EmbeddingTable:
    """Rows of a memory-mapped embedding table.

    Args:
        path: a safetensors file whose tensor `embedding` is float (vocabulary, width), or int8 with a tensor `scale`,
            float32 (vocabulary,).
        width: expected row length.

    Raises:
        ArtifactError: the file is no safetensors file, lacks the tensor or has another width.
    """

    def __init__(self, path: Path, width: int) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            self._file = cast(Any, safe_open(path, framework="numpy"))
            self._rows: Any = self._file.get_slice(EMBEDDING_TENSOR)
            shape = tuple(self._rows.get_shape())
            scaled = EMBEDDING_SCALE in self._file.keys()  # noqa: SIM118 - safe_open is no mapping
            self._scale: Any = self._file.get_tensor(EMBEDDING_SCALE) if scaled else None
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                explain(
                    f"embedding {path.name}",
                    got=str(error),
                    expected=f"tensor {EMBEDDING_TENSOR!r}",
                    remedy="Export it again.",
                )
            ) from None
        if len(shape) != 2 or shape[1] != width:
            raise ArtifactError(
                explain(
                    f"embedding {path.name}",
                    got=f"shape {shape}",
                    expected=f"(vocabulary, {width})",
                    remedy="Export it again.",
                )
            )
        self.num_rows: Final = int(shape[0])

    def __call__(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return float32 (token, width) for ids (token,).

        Raises:
            ArtifactError: an id lies outside the table: tokenizer and table belong to different policies.
        """
        if ids.min(initial=0) < 0 or ids.max(initial=0) >= self.num_rows:
            raise ArtifactError(
                explain(
                    "embedding",
                    got=f"token id {int(ids.max())}",
                    expected=f"below {self.num_rows}",
                    remedy="Export it again.",
                )
            )
        rows: npt.NDArray[np.float32] = np.concatenate([self._rows[int(row) : int(row) + 1] for row in ids]).astype(
            np.float32
        )
        return rows if self._scale is None else rows * self._scale[ids][:, None]


class InstructionEncoder:
    """Tokenises and embeds; the last `MAX_CACHED_INSTRUCTIONS` results are kept.

    Args:
        tokenizer: instruction to ids and mask.
        embed: ids (token,) to float32 (token, width).
        padded: keep the padding, for a graph with a static number of tokens. It never changes a feature, only the time.
    """

    def __init__(
        self,
        tokenizer: InstructionTokenizer,
        embed: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]],
        *,
        padded: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._padded = padded
        self._embed = embed
        self._cached = functools.lru_cache(maxsize=MAX_CACHED_INSTRUCTIONS)(self._encode)

    def __call__(self, instruction: str) -> EmbeddedInstruction:
        """Embed `instruction`.

        Raises:
            ContractError: it is empty or too long for the policy.
        """
        return self._cached(instruction)

    def _encode(self, instruction: str) -> EmbeddedInstruction:
        ids, mask = self._tokenizer.encode(instruction)
        if not self._padded:
            ids, mask = ids[mask], mask[mask]
        embedding = self._embed(ids)[None]
        mask = mask[None]
        embedding.flags.writeable = False
        mask.flags.writeable = False
        return EmbeddedInstruction(embedding=embedding, mask=mask)
