"""Training paraphrases and held-out sentences: apart from each other, and each with one meaning."""

import re

import numpy as np
import pytest

from rfedge.config import preset
from rfedge.envs.language import (
    ENRICHED_INSTRUCTIONS,
    PARAPHRASES,
    choose_instruction,
    sample_enriched_instruction,
    sample_instruction,
)
from rfedge.envs.tasks import COLOURS, INSTRUCTIONS, TASKS
from rfedge.errors import ConfigError
from rfedge.language.tokenizer import InstructionTokenizer
from tests.errors import raises

TABLES = {"training": PARAPHRASES, "enriched": ENRICHED_INSTRUCTIONS}


def normalise(sentence: str) -> str:
    return " ".join(re.findall(r"[a-z']+", sentence.lower()))


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_task_has_ten_sentences_or_more(table: dict[str, tuple[str, ...]]) -> None:
    assert tuple(table) == TASKS
    assert all(len(sentences) >= 10 for sentences in table.values())
    for sentences in table.values():
        assert all(sentence == " ".join(sentence.split()) and "{" not in sentence for sentence in sentences)


def test_no_sentence_stands_twice_in_training_evaluation_and_the_held_out_set() -> None:
    everything = [normalise(sentence) for sentence in INSTRUCTIONS.values()]
    for table in TABLES.values():
        everything += [normalise(sentence) for sentences in table.values() for sentence in sentences]
    assert len(everything) == len(set(everything))


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_colour_and_side_are_those_of_the_task(table: dict[str, tuple[str, ...]]) -> None:
    for task, sentences in table.items():
        for sentence in sentences:
            words = set(normalise(sentence).replace("wards", "").split())
            assert words & set(COLOURS) == set(task.split("_")) & set(COLOURS), sentence
            sides = set(task.split("_")) & {"left", "right"}
            if sides:
                assert words & {"left", "right"} == sides, sentence


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize(("place", "others"), [("drawer", "cabinet shelf"), ("slider", "drawer tabletop")])
def test_tasks_that_differ_by_place_name_it(table: dict[str, tuple[str, ...]], place: str, others: str) -> None:
    names = {"drawer": {"drawer"}, "slider": {"cabinet", "shelf", "cupboard", "door", "cabinet's"}}[place]
    for task in TASKS:
        if task.startswith(("lift_", "place_")) and task.endswith(place):
            for sentence in table[task]:
                words = set(normalise(sentence).replace("drawer's", "drawer").split())
                assert words & names, sentence
                assert not words & set(others.split()), sentence


def test_held_out_sentences_fit_into_a_policy_that_learnt_its_words_from_the_paraphrases() -> None:
    config = preset("playtable-small").decoder
    corpus = [sentence for sentences in PARAPHRASES.values() for sentence in sentences]
    tokenizer = InstructionTokenizer.from_corpus(corpus, vocab_size=config.vocab_size, text_length=config.text_length)
    for sentences in (*ENRICHED_INSTRUCTIONS.values(), *PARAPHRASES.values(), tuple(INSTRUCTIONS.values())):
        for sentence in sentences:
            tokenizer.encode(sentence)  # refuses what is too long


def test_sampling_is_decided_by_the_generator() -> None:
    for sample, table in ((sample_instruction, PARAPHRASES), (sample_enriched_instruction, ENRICHED_INSTRUCTIONS)):
        first = [sample("stack_block", np.random.default_rng(seed)) for seed in range(60)]
        assert first == [sample("stack_block", np.random.default_rng(seed)) for seed in range(60)]
        assert set(first) <= set(table["stack_block"])
        assert len(set(first)) > 7
        with raises(ConfigError, expected="...did you mean 'stack_block'..."):
            sample("stack_blocks", np.random.default_rng(0))


def test_languages_of_an_evaluation() -> None:
    rng = np.random.default_rng(0)
    assert choose_instruction("open_drawer", "evaluation", rng) == "pull the handle to open the drawer"
    assert choose_instruction("open_drawer", "enriched", rng) in ENRICHED_INSTRUCTIONS["open_drawer"]
    with raises(ConfigError, "language", got="'enrichd'", expected="one of evaluation, enriched (did you mean..."):
        choose_instruction("open_drawer", "enrichd", rng)
