from pathlib import Path

import numpy as np
import pytest

from rfedge.errors import ArtifactError, ContractError
from rfedge.language.tokenizer import InstructionTokenizer
from tests.errors import raises

CORPUS = ["open the drawer", "close the drawer", "push the sliding door to the left side"]


@pytest.fixture(scope="module")
def tokenizer() -> InstructionTokenizer:
    return InstructionTokenizer.from_corpus(CORPUS, vocab_size=400, text_length=12)


def test_rows_have_one_length_and_a_mask_of_real_tokens(tokenizer: InstructionTokenizer) -> None:
    ids, mask = tokenizer.encode("open the drawer")
    assert ids.shape == mask.shape == (12,)
    assert ids.dtype == np.int64
    assert mask.sum() == 6  # <image>, three words, <|endofchunk|>, <|endoftext|>
    assert not mask[mask.sum() :].any()
    assert len(set(ids[~mask].tolist())) == 1


def test_unseen_words_are_spelt_not_lost(tokenizer: InstructionTokenizer) -> None:
    known, _ = tokenizer.encode("open the drawer")
    unknown, mask = tokenizer.encode("open the cabin")
    assert not np.array_equal(known, unknown)
    assert mask.sum() > 6


def test_the_same_corpus_gives_the_same_file(tokenizer: InstructionTokenizer, tmp_path: Path) -> None:
    InstructionTokenizer.from_corpus(CORPUS, vocab_size=400, text_length=12).save(tmp_path / "a.json")
    tokenizer.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    loaded = InstructionTokenizer.load(tmp_path / "a.json", text_length=12)
    assert np.array_equal(loaded.encode("close the drawer")[0], tokenizer.encode("close the drawer")[0])


def test_empty_and_long_instructions_are_refused(tokenizer: InstructionTokenizer) -> None:
    with raises(ContractError, "instruction", got="empty text", expected="plain words"):
        tokenizer.encode("   ")
    with raises(ContractError, "instruction", got="... tokens", expected="at most 12", remedy="Say it in fewer words."):
        tokenizer.encode("open the drawer " * 8)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    with raises(ArtifactError, got="no file", expected="a tokenizer.json"):
        InstructionTokenizer.load(tmp_path / "none.json", 12)
    (tmp_path / "bad.json").write_text("{")
    with raises(ArtifactError, expected="a tokenizer.json", remedy="Copy it again."):
        InstructionTokenizer.load(tmp_path / "bad.json", 12)
