"""Instructions as the backbone wants them: embedded once, then reused on every step.

The embedding table is the largest thing of a small policy (206 MB for MPT-1B in fp16) and an instruction reads a
dozen of its rows, so the table stays in the file, memory-mapped, and never enters the engine.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np
import numpy.typing as npt

from rfedge.arrays import Float32
from rfedge.bundle.artifact import EMBEDDING_SCALE, EMBEDDING_TENSOR, Bundle
from rfedge.errors import ArtifactError, ContractError
from rfedge.language.instructions import InstructionTable
from rfedge.language.tokenizer import InstructionTokenizer

__all__ = ["EmbeddedInstruction", "EmbeddingTable", "InstructionEncoder", "TokenSource", "open_encoder", "pad_instruction"]

logger = logging.getLogger(__name__)
# A chain has 5 instructions and the whole benchmark 34; a server's clients can send any text, so the cache is bounded.
MAX_CACHED_INSTRUCTIONS: Final = 256


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedInstruction:
    """One instruction, ready for the backbone; its arrays are read-only because calls share them."""

    embedding: Float32  # (1, token, width); padded only for a static number of tokens
    mask: npt.NDArray[np.bool_]  # (1, token), true on real tokens


def pad_instruction(text: EmbeddedInstruction, length: int) -> EmbeddedInstruction:
    """Return `text` with `length` tokens, for a graph or engine profile of that static size.

    What is added has a false mask, so no token attends to it and the pooling leaves it out: the feature stays.

    Raises:
        ContractError: the text is longer.
    """
    num_tokens = text.mask.shape[1]
    if num_tokens > length:
        remedy = "Choose a longer profile."
        raise ContractError("instruction", got=f"{num_tokens} tokens", expected=f"at most {length}", remedy=remedy)
    added = ((0, 0), (0, length - num_tokens))
    embedding, mask = np.pad(text.embedding, (*added, (0, 0))), np.pad(text.mask, added)
    embedding.flags.writeable = False
    mask.flags.writeable = False
    return EmbeddedInstruction(embedding=embedding, mask=mask)


class EmbeddingTable:
    """Rows of a memory-mapped embedding table.

    A safetensors file whose tensor `embedding` is float (vocabulary, width), or int8 with a tensor `scale`, float32
    (vocabulary,).

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
            expected, remedy = f"tensor {EMBEDDING_TENSOR!r}", "Export it again."
            raise ArtifactError(f"embedding {path.name}", got=str(error), expected=expected, remedy=remedy) from None
        if len(shape) != 2 or shape[1] != width:
            expected = f"(vocabulary, {width})"
            raise ArtifactError(f"embedding {path.name}", got=f"shape {shape}", expected=expected, remedy="Export it again.")
        self.num_rows: Final = int(shape[0])

    def __call__(self, ids: npt.NDArray[np.int64]) -> Float32:
        """Return float32 (token, width) for ids (token,); ArtifactError where an id lies outside the table."""
        if ids.min(initial=0) < 0 or ids.max(initial=0) >= self.num_rows:
            expected = f"below {self.num_rows}"
            raise ArtifactError("embedding", got=f"token id {int(ids.max())}", expected=expected, remedy="Export it again.")
        rows: Float32 = np.concatenate([self._rows[int(row) : int(row) + 1] for row in ids]).astype(np.float32)
        return rows if self._scale is None else rows * self._scale[ids][:, None]


class TokenSource(Protocol):
    """Encoder of words into ids: a tokenizer for any words, or a table of known sentences."""

    def encode(self, instruction: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return ids (text_length,) padded on the right, and a mask (text_length,), true on real tokens."""


class InstructionEncoder:
    """Tokenises and embeds; the last `MAX_CACHED_INSTRUCTIONS` results are kept.

    `embed` takes ids (token,) to float32 (token, width). `padded` keeps the padding, for a static number of tokens; it never
    changes a feature, only the time.
    """

    def __init__(
        self, tokenizer: TokenSource, embed: Callable[[npt.NDArray[np.int64]], Float32], *, padded: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._padded = padded
        self._embed = embed
        self._cached = functools.lru_cache(maxsize=MAX_CACHED_INSTRUCTIONS)(self._encode)

    def __call__(self, instruction: str) -> EmbeddedInstruction:
        """Embed `instruction`; ContractError where it is empty, too long, or not in a bundle's table of sentences."""
        return self._cached(instruction)

    def _encode(self, instruction: str) -> EmbeddedInstruction:
        ids, mask = self._tokenizer.encode(instruction)
        if isinstance(self._tokenizer, InstructionTokenizer) and (rare := self._tokenizer.rare_words(instruction)):
            words = ", ".join(map(repr, rare))
            logger.warning(
                "%r: the policy hardly knows %s, and acts all the same; use words of its training", instruction, words
            )
        embedding, real = self._embed(ids[mask])[None], mask[mask][None]
        embedding.flags.writeable = False
        real.flags.writeable = False
        text = EmbeddedInstruction(embedding=embedding, mask=real)
        return pad_instruction(text, len(ids)) if self._padded else text


def open_encoder(bundle: Bundle) -> InstructionEncoder:
    """Open what the bundle knows of language: any words, or its table of sentences; raises ArtifactError."""
    decoder = bundle.policy.decoder
    knows_sentences = bundle.has("instructions")
    tokens: TokenSource = (
        InstructionTable(bundle.path("instructions"), decoder.text_length)
        if knows_sentences
        else InstructionTokenizer.load(bundle.path("tokenizer"), decoder.text_length)
    )
    rows = EmbeddingTable(bundle.path("instructions" if knows_sentences else "embedding"), decoder.width)
    return InstructionEncoder(tokens, rows, padded=bundle.contract.backbone.input("text_mask").shape[1] != -1)
