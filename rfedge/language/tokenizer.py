"""Instructions as token ids, in the prompt form of RoboFlamingo: `<image>{instruction}<|endofchunk|><|endoftext|>`.

The tokenizer is a Hugging Face `tokenizer.json`, read by the `tokenizers` library alone, so that the robot needs no
transformers. Presets trained from nothing get a byte-level BPE made from their own instructions. A tokenizer that came
with a language model has other tokens around the prompt; its file says which, as the template that the same library
applies to a text (`post_processor`) and as its padding.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from rfedge.errors import ArtifactError, ContractError
from rfedge.language.instructions import plain_words

END_OF_TEXT: Final = "<|endoftext|>"
END_OF_CHUNK: Final = "<|endofchunk|>"
IMAGE: Final = "<image>"
PAD: Final = "<PAD>"


_KNOWN_TOKENS: Final = 2  # of a word with an ending
_TELLING_VOCABULARY: Final = 1000


class PromptTokens(NamedTuple):
    """Prompt tokens of a language model's own tokenizer."""

    end_of_text: str = END_OF_TEXT
    begin_of_text: str = ""  # starts it, or nothing does
    pad: str = PAD

    def prompt(self, text: str) -> str:
        return f"{self.begin_of_text}{IMAGE}{text}{END_OF_CHUNK}{self.end_of_text}"

    def record(self, backend: tokenizers.Tokenizer) -> None:
        """Write these tokens into `backend`, so that its file says them."""
        template = [token for token in (self.begin_of_text, IMAGE, "$A", END_OF_CHUNK, self.end_of_text) if token]
        special = dict.fromkeys(token for token in template if token != "$A")
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(token, backend.token_to_id(token)) for token in special]
        )
        backend.enable_padding(pad_id=backend.token_to_id(self.pad), pad_token=self.pad)
        backend.no_truncation()

    @classmethod
    def recorded(cls, backend: tokenizers.Tokenizer) -> PromptTokens:
        """Return what `record` wrote, or RoboFlamingo's own tokens where the file holds no prompt."""
        document: dict[str, Any] = json.loads(backend.to_str())
        pieces = (document.get("post_processor") or {}).get("single") or ()
        template = [piece.get("SpecialToken", {}).get("id", "") for piece in pieces]
        if IMAGE not in template:
            return cls()
        begin = template[: template.index(IMAGE)]
        return cls(template[-1], begin[0] if begin else "", (document.get("padding") or {}).get("pad_token", PAD))


class InstructionTokenizer:
    """Turns one instruction into a row of `text_length` ids, padded; longer ones are refused, not cut."""

    def __init__(self, backend: tokenizers.Tokenizer, text_length: int) -> None:
        self.tokens = PromptTokens.recorded(backend)
        special = (END_OF_CHUNK, IMAGE, *filter(None, self.tokens))
        missing = [token for token in special if backend.token_to_id(token) is None]
        if missing:
            raise ArtifactError(
                "tokenizer", got=f"no token {missing[0]}", expected="the special tokens", remedy="Use tokenizer.json."
            )
        self._backend = backend
        self.text_length = text_length
        self.pad_id = int(backend.token_to_id(self.tokens.pad) or 0)

    @classmethod
    def load(cls, path: Path, text_length: int) -> InstructionTokenizer:
        """Read a tokenizer.json; raises ArtifactError."""
        if not path.is_file():
            raise ArtifactError(f"tokenizer {path}", got="no file", expected="a tokenizer.json", remedy="Copy it again.")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ArtifactError(
                f"tokenizer {path}", got=str(error), expected="a tokenizer.json", remedy="Copy it again."
            ) from None
        return cls(backend, text_length)

    @classmethod
    def from_corpus(
        cls, corpus: Iterable[str], *, vocab_size: int, text_length: int, lowercase: bool = False
    ) -> InstructionTokenizer:
        """Learn a byte-level BPE of at most `vocab_size` entries; `lowercase` reads capital letters as small ones."""
        backend = tokenizers.Tokenizer(models.BPE())
        if lowercase:
            backend.normalizer = normalizers.Lowercase()
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

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens around an instruction."""
        return len(self._backend.encode(self.tokens.prompt(""), add_special_tokens=False).ids)

    def save(self, path: Path) -> None:
        self._backend.save(str(path))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return (id, end in characters) of every token of `text` as it stands: nothing is added, cut or padded."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return [(token_id, end) for token_id, (_, end) in zip(encoding.ids, encoding.offsets, strict=True)]

    def rare_words(self, instruction: str) -> list[str]:
        """Return the words that take more than two tokens; nothing follows from them in a small vocabulary."""
        words = plain_words(instruction).split() if self.vocab_size >= _TELLING_VOCABULARY else []
        return [
            word for word in words if len(self._backend.encode(f" {word}", add_special_tokens=False).ids) > _KNOWN_TOKENS
        ]

    def encode(self, instruction: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return ids (text_length,) padded on the right, and a mask (text_length,) that is true on real tokens.

        Raises ContractError where the instruction is empty or longer than text_length.
        """
        text = plain_words(instruction)
        ids = self._backend.encode(self.tokens.prompt(text), add_special_tokens=False).ids
        if len(ids) > self.text_length:
            expected = f"at most {self.text_length}"
            remedy = "Say it in fewer words."
            raise ContractError("instruction", got=f"{len(ids)} tokens", expected=expected, remedy=remedy)
        row = np.full(self.text_length, self.pad_id, dtype=np.int64)
        row[: len(ids)] = ids
        return row, np.arange(self.text_length) < len(ids)
