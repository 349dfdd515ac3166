"""Language files of a bundle: its tokenizer and the whole token table, or a fixed list of sentences (--instructions).

A list is a text file with one sentence a line, a .json file with a list of texts, or the word "data" for every sentence
of the demonstrations. Sentences are kept as they stand, but for outer spaces; one that comes twice is kept once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from safetensors.numpy import save_file

from rfedge.arrays import Array, Float32, Int8
from rfedge.bundle.artifact import EMBEDDING_SCALE, EMBEDDING_TENSOR, BundleWriter
from rfedge.config import DecoderConfig, Precision
from rfedge.data import CalvinDataset
from rfedge.errors import ConfigError, ContractError
from rfedge.export.words import Words
from rfedge.language.instructions import MAX_SENTENCE_CHARACTERS, MAX_SENTENCES, write_instruction_table
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model import Checkpoint

FROM_DATA: Final = "data"
_MAX_FILE_BYTES: Final = 4 * MAX_SENTENCES * MAX_SENTENCE_CHARACTERS  # UTF-8 has at most 4 bytes a character


def choose_sentences(
    instructions: str | None, tokenizer: InstructionTokenizer, dataset: CalvinDataset | None
) -> tuple[str, ...] | None:
    """Return the sentences that a bundle shall know, each once, in their order; None for any words."""
    if instructions is None:
        return None
    if instructions == FROM_DATA:
        if dataset is None:
            raise _refused("data without demonstrations", "--data DIR beside it", "Pass --data, or a file of sentences.")
        found: Sequence[Any] = sorted(dataset.instructions)
    else:
        found = _read(Path(instructions))
    distinct = dict.fromkeys(_words(text, index) for index, text in enumerate(found, start=1))
    if not 0 < len(distinct) <= MAX_SENTENCES:
        raise _refused(f"{len(distinct)} sentences", f"1 to {MAX_SENTENCES}", "Put one sentence on a line.")
    sentence = ""
    try:
        for sentence in distinct:  # kept, to name the one that fails
            tokenizer.encode(sentence)
    except ContractError as error:
        raise ConfigError(f"--instructions, sentence {sentence[:80]!r}: {error}") from None
    return tuple(distinct)


def write_language(
    checkpoint: Checkpoint,
    stored: StoredTable,
    sentences: Sequence[str] | None,
    writer: BundleWriter,
    words: Words | None = None,
) -> None:
    """Write what turns an instruction, of `sentences` or any, into what the decoder reads: embedded, or through `words`."""
    table: Float32 = checkpoint.policy.embedding.weight.detach().numpy()
    if sentences is None:
        save_file(stored.tensors(table), writer.add("embedding.safetensors", "embedding"))
        checkpoint.tokenizer.save(writer.add("tokenizer.json", "tokenizer"))
        return
    token_ids = []
    for sentence in sentences:
        ids, mask = checkpoint.tokenizer.encode(sentence)
        token_ids.append(ids[mask])
    path = writer.add("instructions.safetensors", "instructions")
    if words is not None:
        places, table = words.states(token_ids, table)
        token_ids = places
    rows = np.unique(np.concatenate(token_ids))
    write_instruction_table(path, sentences, token_ids, rows, stored.tensors(table[rows]))


def _read(path: Path) -> list[Any]:
    if not path.is_file():
        raise _refused(f"no file {path}", "a list of sentences", 'Name a text or .json file, or "data" with --data DIR.')
    if (size := path.stat().st_size) > _MAX_FILE_BYTES:
        raise _refused(f"a file of {size} bytes", f"at most {_MAX_FILE_BYTES}", "Name a list of sentences.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        found = json.loads(text) if path.suffix == ".json" else [line for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:  # no UTF-8 or no JSON
        raise _refused(f"{path.name} with {error}", "UTF-8 text, and in a .json file a list", "Mend the file.") from None
    if not isinstance(found, list):
        raise _refused(f"{path.name} with a {type(found).__name__}", "a JSON list of texts", "Mend the file.")
    return found


def _words(text: Any, index: int) -> str:
    if not isinstance(text, str) or not text.strip():
        raise _refused(f"{text!r} as sentence {index}", "plain words", "Mend the list.")
    if len(words := text.strip()) > MAX_SENTENCE_CHARACTERS:
        raise _refused(f"{len(words)} characters in sentence {index}", f"at most {MAX_SENTENCE_CHARACTERS}", "Cut it.")
    return words


def _refused(got: str, expected: str, remedy: str) -> ConfigError:
    return ConfigError("--instructions", got=got, expected=expected, remedy=remedy)


_LARGE_BYTES: Final = 100_000_000  # in fp16
_EIGHT_BITS: Final = ("int8", "mixed", "int8-weight")


@dataclass(frozen=True, slots=True)
class StoredTable:
    """How a table is stored: "float32", "float16", or "int8" with one scale a row."""

    dtype: Literal["float32", "float16", "int8"]

    def tensors(self, rows: Float32) -> dict[str, Array]:
        """Return the tensors that store rows (row, width); a row is stored alike whatever stands beside it."""
        if self.dtype == "int8":
            scale, rounded = _rounded(rows)
            return {EMBEDDING_TENSOR: rounded, EMBEDDING_SCALE: scale}
        return {EMBEDDING_TENSOR: rows.astype(self.dtype)}

    def as_stored(self, rows: Array) -> Float32:
        """Return embedded tokens (..., width) as they come back from the stored table."""
        if self.dtype == "int8":
            scale, rounded = _rounded(rows)
            return rounded.astype(np.float32) * scale[..., None]
        return rows.astype(self.dtype).astype(np.float32)


def stored_words(decoder: DecoderConfig, precision: Precision, *, are_states: bool) -> StoredTable:
    """Return how what a decoder reads is stored; hidden states, which int8 would round more, in 16 bits."""
    stored = stored_table(decoder, precision)
    return StoredTable("float16") if are_states and stored.dtype == "int8" else stored


def stored_table(decoder: DecoderConfig, precision: Precision) -> StoredTable:
    """Return how the table of `decoder` is stored in a bundle of this precision."""
    if precision == "fp32":
        return StoredTable("float32")
    if precision == "int4-weight":  # a scale a row rounds less than the first MatMul does
        return StoredTable("int8")
    is_large = 2 * decoder.vocab_size * decoder.width > _LARGE_BYTES
    return StoredTable("int8" if is_large and precision in _EIGHT_BITS else "float16")


def _rounded(rows: Array) -> tuple[Float32, Int8]:
    scale = np.maximum(np.abs(rows).max(axis=-1) / 127.0, np.finfo(np.float32).tiny).astype(np.float32)
    return scale, np.clip(np.rint(rows / scale[..., None]), -127, 127).astype(np.int8)
