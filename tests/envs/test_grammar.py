"""The training grammar: much to say, each sentence with one meaning, and none that a policy is evaluated with."""

import re

import numpy as np
import pytest

from rfedge.config import preset
from rfedge.data.scene.questions import QUESTION_WORDS
from rfedge.envs.language import ENRICHED_INSTRUCTIONS, GRAMMAR_WORDS, sample_grammar
from rfedge.envs.tasks import COLOURS, INSTRUCTIONS, TASKS
from rfedge.errors import ConfigError
from rfedge.train.batches.wording import Grammar, learn_tokenizer
from rfedge.train.pretraining.pointing import number_ids
from tests.errors import raises

NUM_SENTENCES = 400


@pytest.fixture(scope="module")
def sentences() -> dict[str, list[str]]:
    rng = np.random.default_rng(0)
    return {task: [sample_grammar(task, rng) for _ in range(NUM_SENTENCES)] for task in TASKS}


def words(sentence: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"(left|right)wards?", r"\1", sentence.lower()))


def test_hundreds_of_ways_to_say_each_task(sentences: dict[str, list[str]]) -> None:
    for task, said in sentences.items():
        assert len({" ".join(words(sentence)) for sentence in said}) > 0.9 * NUM_SENTENCES, task
        assert all(sentence == " ".join(sentence.split()) and "{" not in sentence for sentence in said)


def test_nothing_that_is_evaluated_is_trained_on(sentences: dict[str, list[str]]) -> None:
    evaluated = {" ".join(words(sentence)) for sentence in INSTRUCTIONS.values()}
    evaluated |= {" ".join(words(sentence)) for said in ENRICHED_INSTRUCTIONS.values() for sentence in said}
    trained = {" ".join(words(sentence)) for said in sentences.values() for sentence in said}
    assert not evaluated & trained
    politely = {re.sub(r"^(please|could you|can you|would you|now) |( please| now| for me)$", "", text) for text in trained}
    assert not evaluated & politely


def test_a_sentence_means_one_task(sentences: dict[str, list[str]]) -> None:
    meanings: dict[str, set[str]] = {}
    for task, said in sentences.items():
        for sentence in said:
            meanings.setdefault(" ".join(words(sentence)), set()).add(task)
    assert [text for text, tasks in meanings.items() if len(tasks) > 1] == []


def test_colour_and_side_are_those_of_the_task(sentences: dict[str, list[str]]) -> None:
    for task, said in sentences.items():
        for sentence in said:
            assert set(words(sentence)) & set(COLOURS) == set(task.split("_")) & set(COLOURS), sentence
            if sides := set(task.split("_")) & {"left", "right"}:
                assert set(words(sentence.replace("right away", ""))) & {"left", "right"} == sides, sentence


def test_the_generator_decides() -> None:
    first, again = ([sample_grammar("stack_block", np.random.default_rng(seed)) for seed in range(50)] for _ in range(2))
    assert first == again
    with raises(ConfigError, expected="...did you mean 'stack_block'..."):
        sample_grammar("stack_blocks", np.random.default_rng(0))


def test_a_tokenizer_of_the_preset_holds_every_word(sentences: dict[str, list[str]]) -> None:
    said = {word for task in TASKS for sentence in sentences[task] for word in re.findall(r"[a-z]+", sentence.lower())}
    assert said <= set(GRAMMAR_WORDS)
    decoder = preset("playtable-small").decoder
    tokenizer = learn_tokenizer([], decoder, Grammar(sample_grammar, GRAMMAR_WORDS), QUESTION_WORDS * 2)
    number_ids(tokenizer)  # refuses a number of several tokens
    assert [word for word in GRAMMAR_WORDS if len(tokenizer.spans(word)) > 1] == []
    assert tokenizer.spans("Open The DRAWER") == tokenizer.spans("open the drawer")
    lengths = [
        len(tokenizer.spans(sentence)) + tokenizer.num_prompt_tokens
        for task in TASKS
        for sentence in ENRICHED_INSTRUCTIONS[task]
    ]
    assert max(lengths) <= decoder.text_length
    assert sum(lengths) / len(lengths) < 14  # words never read come in pieces of some letters, not letter by letter
