"""Instructions as token ids, in the prompt form of RoboFlamingo: `<image>{instruction}<|endofchunk|><|endoftext|>`.

The tokenizer is a Hugging Face `tokenizer.json`, read by the `tokenizers` library alone, so that the robot needs no
transformers. Presets trained from nothing get a byte-level BPE made from their own instructions.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from rfedge.errors import ArtifactError, ContractError, explain

__all__ = ["InstructionTokenizer"]

END_OF_TEXT: Final = "<|endoftext|>"
END_OF_CHUNK: Final = "<|endofchunk|>"
IMAGE: Final = "<image>"
PAD: Final = "<PAD>"


class InstructionTokenizer:
    """Turns one instruction into a padded row of ids.

    Args:
        backend: a `tokenizers.Tokenizer` that knows the four special tokens.
        text_length: length of every row; longer instructions are refused, not cut.
    """

    def __init__(self, backend: tokenizers.Tokenizer, text_length: int) -> None:
        missing = [token for token in (END_OF_TEXT, END_OF_CHUNK, IMAGE, PAD) if backend.token_to_id(token) is None]
        if missing:
            raise ArtifactError(
                explain(
                    "tokenizer", got=f"no token {missing[0]}", expected="the special tokens", remedy="Use tokenizer.json."
                )
            )
        self._backend = backend
        self.text_length = text_length
        self._pad_id = int(backend.token_to_id(PAD) or 0)

    @classmethod
    def load(cls, path: Path, text_length: int) -> InstructionTokenizer:
        """Read a tokenizer.json.

        Raises:
            ArtifactError: the file is missing or is no tokenizer.
        """
        if not path.is_file():
            raise ArtifactError(
                explain(f"tokenizer {path}", got="no file", expected="a tokenizer.json", remedy="Copy it again.")
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ArtifactError(
                explain(f"tokenizer {path}", got=str(error), expected="a tokenizer.json", remedy="Copy it again.")
            ) from None
        return cls(backend, text_length)

    @classmethod
    def from_corpus(cls, corpus: Iterable[str], *, vocab_size: int, text_length: int) -> InstructionTokenizer:
        """Learn a byte-level BPE of at most `vocab_size` entries; any text can be encoded, known words are short."""
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT, END_OF_CHUNK, IMAGE, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(corpus, trainer)
        return cls(backend, text_length)

    @property
    def vocab_size(self) -> int:
        return int(self._backend.get_vocab_size())

    def save(self, path: Path) -> None:
        self._backend.save(str(path))

    def encode(self, instruction: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return ids (text_length,) padded on the right, and a mask (text_length,) that is true on real tokens.

        Raises:
            ContractError: the instruction is empty or longer than the policy's text_length.
        """
        text = instruction.strip()
        if not text:
            raise ContractError(
                explain(
                    "instruction", got="empty text", expected="plain words", remedy='Pass --instruction "open the drawer".'
                )
            )
        ids = self._backend.encode(f"{IMAGE}{text}{END_OF_CHUNK}{END_OF_TEXT}", add_special_tokens=False).ids
        if len(ids) > self.text_length:
            raise ContractError(
                explain(
                    "instruction",
                    got=f"{len(ids)} tokens",
                    expected=f"at most {self.text_length}",
                    remedy="Say it in fewer words.",
                )
            )
        row = np.full(self.text_length, self._pad_id, dtype=np.int64)
        row[: len(ids)] = ids
        return row, np.arange(self.text_length) < len(ids)
