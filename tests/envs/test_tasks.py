"""Task names, evaluation instructions and training paraphrases."""

import numpy as np

from rfedge.envs.language import PARAPHRASES, sample_instruction
from rfedge.envs.tasks import INSTRUCTIONS, TASKS, check_task
from rfedge.errors import ConfigError
from tests.errors import raises


def test_order_of_task_ids() -> None:
    assert len(TASKS) == 34
    landmarks = {0: "rotate_red_block_right", 5: "rotate_pink_block_left", 6: "push_red_block_right", 12: "move_slider_left"}
    landmarks |= {14: "open_drawer", 16: "lift_red_block_table", 17: "lift_red_block_slider", 18: "lift_red_block_drawer"}
    landmarks |= {19: "lift_blue_block_table", 25: "place_in_slider", 27: "stack_block", 29: "turn_on_lightbulb"}
    landmarks |= {30: "turn_off_lightbulb", 31: "turn_on_led", 33: "push_into_drawer"}
    assert {index: TASKS[index] for index in landmarks} == landmarks


def test_evaluation_instructions_are_the_benchmarks_own() -> None:
    assert INSTRUCTIONS["lift_blue_block_drawer"] == "Take the blue block from the drawer"
    assert INSTRUCTIONS["push_into_drawer"] == "slide the block that it falls into the drawer"
    assert INSTRUCTIONS["turn_on_led"] == "press the button to turn on the led light"
    assert len(set(INSTRUCTIONS.values())) == 34


def test_unknown_task_proposes_the_nearest() -> None:
    with raises(ConfigError, expected="...did you mean 'open_drawer'..."):
        check_task("open_draw")


def test_every_task_has_ten_paraphrases_of_its_own() -> None:
    assert tuple(PARAPHRASES) == TASKS
    evaluated = {sentence.lower() for sentence in INSTRUCTIONS.values()}
    everything = [sentence for sentences in PARAPHRASES.values() for sentence in sentences]
    assert all(len(sentences) >= 10 for sentences in PARAPHRASES.values())
    assert len(everything) == len(set(everything)), "a sentence must name one task"
    assert not evaluated & {sentence.lower() for sentence in everything}


def test_sampling_is_decided_by_the_generator() -> None:
    first = [sample_instruction("open_drawer", np.random.default_rng(seed)) for seed in range(30)]
    again = [sample_instruction("open_drawer", np.random.default_rng(seed)) for seed in range(30)]
    assert first == again
    assert len(set(first)) > 5
