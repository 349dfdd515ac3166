"""What a bundle knows of language: its tokenizer and the whole token table, or a fixed list of sentences (--instructions).

A list is a text file with one sentence a line, a .json file with a list of texts, or the word "data" for every sentence
of the demonstrations. Sentences are kept as they stand, but for outer spaces; one that comes twice is kept once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rfedge.bundle.artifact import BundleWriter
from rfedge.data import CalvinDataset
from rfedge.errors import ConfigError, ContractError
from rfedge.export.embedding import StoredTable
from rfedge.export.words import Words
from rfedge.language.instructions import MAX_SENTENCE_CHARACTERS, MAX_SENTENCES, write_instruction_table
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model import Checkpoint

FROM_DATA: Final = "data"
_MAX_FILE_BYTES: Final = 4 * MAX_SENTENCES * MAX_SENTENCE_CHARACTERS  # UTF-8 has at most 4 bytes a character


def choose_sentences(
    instructions: str | None, tokenizer: InstructionTokenizer, dataset: CalvinDataset | None
) -> tuple[str, ...] | None:
    """Return the sentences that a bundle shall know, each once, in their order; None for any words.

    Args:
        instructions: a file's path, `FROM_DATA`, or None.
        tokenizer: of the checkpoint; every sentence must fit it.
        dataset: the demonstrations, if there are any.

    Raises:
        ConfigError: the file is missing, too large or not what the module's docstring says, a sentence is too long, there
            are none or too many, or `FROM_DATA` was asked for without demonstrations.
    """
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
    """Write the files that turn an instruction into what the decoder reads: for `sentences` alone, or for any words.

    Args:
        stored: how rows are stored.
        words: blocks to run on the sentences; None stores their embedded tokens.
    """
    table: npt.NDArray[np.float32] = checkpoint.policy.embedding.weight.detach().numpy()
    if sentences is None:
        stored.save(table, writer.add("embedding.safetensors", "embedding"))
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
