"""Instructions as plain words, and the table of those that a bundle knows where it holds no tokenizer.

    instructions.safetensors
      embedding, scale   as in embedding.safetensors, but only the rows that some sentence reads, or, with the manifest's
                         `words_blocks`, hidden states of the sentences
      rows               int32 (token,), the sentences' tokens one after the other, as rows of `embedding`
      ends               int64 (sentence,), where each sentence ends in `rows`
      metadata           "sentences": a JSON list of text

So a sentence is embedded from the very numbers that the whole table, or these blocks, would have given it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from rfedge.bundle.artifact import EMBEDDING_TENSOR
from rfedge.errors import ArtifactError, ContractError

MAX_SENTENCES: Final = 10_000
MAX_SENTENCE_CHARACTERS: Final = 1_000
_SENTENCES: Final = "sentences"
_ROWS: Final = "rows"
_ENDS: Final = "ends"
_SHOWN_CHARACTERS: Final = 80


def plain_words(instruction: str) -> str:
    """Return the words that a policy gets: outer spaces do not count, case and a full stop do, as in training."""
    text = instruction.strip()
    if not text:
        raise ContractError(
            "instruction", got="empty text", expected="plain words", remedy='Pass --instruction "open the drawer".'
        )
    return text


class InstructionTable:
    """The sentences of an instructions.safetensors, encoded into rows of that file as a tokenizer would.

    Raises ArtifactError where the file is damaged, beyond the limits of this module, or has sentences over `text_length`.
    """

    def __init__(self, path: Path, text_length: int) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with cast(Any, safe_open(path, framework="numpy")) as file:
                text = (file.metadata() or {}).get(_SENTENCES, "")
                rows, ends = file.get_tensor(_ROWS), file.get_tensor(_ENDS)
                num_rows = file.get_slice(EMBEDDING_TENSOR).get_shape()[0]
        except (SafetensorError, OSError) as error:
            raise _damaged(path, str(error), f"tensors {_ROWS!r} and {_ENDS!r}") from None
        self.sentences: Final = _read_sentences(path, text)
        starts = _check_ends(path, rows, ends, len(self.sentences), text_length)
        if rows.min() < 0 or rows.max() >= num_rows:
            raise _damaged(path, f"rows {rows.min()} to {rows.max()}", f"0 to {num_rows - 1}")
        self.text_length: Final = text_length
        self._rows = {
            sentence: rows[start:end].astype(np.int64)
            for sentence, start, end in zip(self.sentences, starts, ends, strict=True)
        }

    def encode(self, instruction: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return rows (text_length,) padded on the right with 0, and a mask (text_length,), true on real tokens.

        Raises ContractError where the instruction is none of `sentences`; the text names the nearest one.
        """
        words = plain_words(instruction)
        known = self._rows.get(words)
        if known is None:
            raise self._unknown(words)
        padded = np.zeros(self.text_length, dtype=np.int64)
        padded[: len(known)] = known
        return padded, np.arange(self.text_length) < len(known)

    @property
    def most_tokens(self) -> int:
        return max(map(len, self._rows.values()))

    def _unknown(self, words: str) -> ContractError:
        near = difflib.get_close_matches(words[:MAX_SENTENCE_CHARACTERS], self.sentences, n=1, cutoff=0.4)
        example = f"nearest: {near[0]!r}" if near else f"such as {self.sentences[0]!r}"
        got = repr(words if len(words) <= _SHOWN_CHARACTERS else f"{words[:_SHOWN_CHARACTERS]}...")
        expected = f"one of the {len(self.sentences)} sentences of this bundle, {example}"
        remedy = "Say one of them, or export the bundle with this one in --instructions or without that option."
        return ContractError("instruction", got=got, expected=expected, remedy=remedy)


def write_instruction_table(
    path: Path,
    sentences: Sequence[str],
    token_ids: Sequence[npt.NDArray[np.int64]],
    rows: npt.NDArray[np.int64],
    embedding: Mapping[str, npt.NDArray[Any]],
) -> None:
    """Write distinct `sentences` with their `token_ids`; `rows` are the sorted distinct ids that `embedding` holds."""
    from safetensors.numpy import save_file

    tensors = {
        **embedding,
        _ROWS: np.searchsorted(rows, np.concatenate(token_ids)).astype(np.int32),
        _ENDS: np.cumsum([len(ids) for ids in token_ids], dtype=np.int64),
    }
    save_file(tensors, path, metadata={_SENTENCES: json.dumps(list(sentences), ensure_ascii=False)})


def _read_sentences(path: Path, text: str) -> tuple[str, ...]:
    try:
        sentences = json.loads(text)
    except ValueError:
        raise _damaged(path, "no list of sentences", f"metadata {_SENTENCES!r}") from None
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise _damaged(path, "no list of sentences", f"metadata {_SENTENCES!r}")
    if not 0 < len(sentences) <= MAX_SENTENCES:
        raise _damaged(path, f"{len(sentences)} sentences", f"1 to {MAX_SENTENCES}")
    if len(set(sentences)) != len(sentences):
        raise _damaged(path, "a sentence twice", "each one once")
    if not all(sentence == sentence.strip() and 0 < len(sentence) <= MAX_SENTENCE_CHARACTERS for sentence in sentences):
        raise _damaged(path, "an empty, padded or endless sentence", f"1 to {MAX_SENTENCE_CHARACTERS} characters of words")
    return tuple(sentences)


def _check_ends(
    path: Path, rows: npt.NDArray[Any], ends: npt.NDArray[Any], num_sentences: int, text_length: int
) -> npt.NDArray[np.int64]:
    """Return where each sentence starts."""
    if rows.dtype != np.int32 or rows.ndim != 1 or ends.dtype != np.int64 or ends.shape != (num_sentences,):
        raise _damaged(
            path,
            f"{_ROWS} {rows.dtype} {rows.shape}, {_ENDS} {ends.dtype} {ends.shape}",
            f"int32 (token,) and int64 ({num_sentences},)",
        )
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    lengths = ends - starts
    if lengths.min() < 1 or lengths.max() > text_length or ends[-1] != len(rows):
        raise _damaged(
            path,
            f"sentences of {lengths.min()} to {lengths.max()} tokens that end at {ends[-1]} of {len(rows)}",
            f"1 to {text_length} tokens each",
        )
    return starts


def _damaged(path: Path, got: str, expected: str) -> ArtifactError:
    return ArtifactError(f"instructions {path.name}", got=got, expected=expected, remedy="Export the bundle again.")
