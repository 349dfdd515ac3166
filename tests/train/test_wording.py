"""Instructions sampled at every step: decided by (seed, step), short enough, and of the window's task."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rfedge.config import preset
from rfedge.data.calvin import CalvinDataset, Segment
from rfedge.data.frame_cache import FrameCache
from rfedge.data.windows import WindowIndex, WindowSampler
from rfedge.envs.language import GRAMMAR_WORDS, sample_grammar
from rfedge.errors import ConfigError
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model import load_checkpoint
from rfedge.train import TrainConfig, TrainingStep, train_config, train_policy
from rfedge.train.batches.loader import InstructionTable, batch_loader
from rfedge.train.batches.wording import Grammar, Wording
from rfedge.train.config import with_vocabulary
from rfedge.train.distributed import Processes
from rfedge.train.pretraining.config import PretrainConfig
from rfedge.train.pretraining.pretrain import pretrain_policy
from tests.errors import raises
from tests.synthetic_demonstrations import write_demonstrations

GRAMMAR = Grammar(sample_grammar, GRAMMAR_WORDS)
Configure = Callable[..., TrainConfig]


class StoppedError(Exception):
    pass


def kill_after(step: int) -> Callable[[TrainingStep], None]:
    def on_step(report: TrainingStep) -> None:
        if report.step == step:
            raise StoppedError

    return on_step


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(checkpoint).policy.state_dict())


def texts(demonstrations: Path, step: int, grammar: Grammar | None) -> tuple[list[list[int]], list[str]]:
    """Token ids of the batch that `step` is trained on, and the tasks of its windows."""
    dataset = CalvinDataset.open(demonstrations)
    index = WindowIndex(dataset.segments, window=4)
    tokenizer = InstructionTokenizer.from_corpus((*dataset.instructions, *GRAMMAR_WORDS), vocab_size=2048, text_length=24)
    loader = batch_loader(
        index,
        FrameCache.open(dataset),
        InstructionTable(tokenizer, index, grammar),
        WindowSampler(len(index), 6, seed=3),
        shift="none",
        step=step,
        processes=Processes(),
        accumulate=2,
    )
    with loader:
        batch, _ = loader.next()
    chosen = WindowSampler(len(index), 6, seed=3).next_batch()
    rows = [row for part in batch.parts for row in part.token_ids.tolist()]
    return rows, [index.segments[index.windows[number].segment].instruction for number in chosen]


def test_instructions_of_a_batch_depend_on_seed_and_step_alone(demonstrations: Path) -> None:
    (own, instructions), (said, _), (again, _), (later, _) = (
        texts(demonstrations, step, grammar) for step, grammar in ((0, None), (0, GRAMMAR), (0, GRAMMAR), (1, GRAMMAR))
    )
    assert said == again
    assert said not in (own, later)
    assert len(own) == len(said) == len(instructions) == 6


def test_a_wording_keeps_to_the_task_and_to_what_a_policy_reads() -> None:
    tokenizer = InstructionTokenizer.from_corpus(GRAMMAR_WORDS, vocab_size=2048, text_length=16, lowercase=True)
    segment = Segment(0, 9, "push_red_block_left", "own words")
    wording = Wording(GRAMMAR, tokenizer)
    said = [wording.sample(segment, np.random.default_rng(seed)) for seed in range(200)]
    assert 5 < said.count(segment.instruction) < 40
    said = [sentence for sentence in said if sentence != segment.instruction]
    assert all("red" in sentence.lower() and "left" in sentence for sentence in said)
    assert max(len(tokenizer.spans(sentence)) for sentence in said) <= 16 - tokenizer.num_prompt_tokens
    assert max(len(tokenizer.spans(wording.sample(segment, np.random.default_rng(seed), 12))) for seed in range(50)) <= 12
    assert wording.sample(segment, np.random.default_rng(1), 1) == segment.instruction  # no sentence is that short


def test_straight_equals_killed_and_resumed(configure: Configure, tmp_path: Path) -> None:
    whole, parts = (
        configure(tmp_path / name, steps=4, save_every=2, instructions="grammar", policy_changes={}) for name in ("a", "b")
    )
    train_policy(whole, grammar=GRAMMAR)
    with pytest.raises(StoppedError):
        train_policy(parts, grammar=GRAMMAR, on_step=kill_after(3))
    train_policy(parts, grammar=GRAMMAR)
    expected, resumed = weights(tmp_path / "a" / "checkpoint"), weights(tmp_path / "b" / "checkpoint")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    tokenizer = load_checkpoint(tmp_path / "a" / "checkpoint").tokenizer
    assert tokenizer.spans("SLIDING") == tokenizer.spans("sliding")


def test_a_run_that_samples_needs_a_grammar_that_knows_its_tasks(configure: Configure, tmp_path: Path) -> None:
    config = configure(tmp_path, instructions="grammar")
    with raises(ConfigError, "grammar", got="none", expected="one with instructions 'grammar'"):
        train_policy(config)

    def know_nothing(task: str, rng: np.random.Generator) -> str:
        raise ConfigError(f"no sentence of {task}")

    with raises(ConfigError, "no sentence of close_drawer"):
        train_policy(config, grammar=Grammar(know_nothing, ()))


def test_pretraining_reads_sampled_instructions(tmp_path: Path) -> None:
    data = write_demonstrations(tmp_path / "data", episodes_per_task=2, num_frames=8)
    policy = preset("tiny")
    policy = policy.model_copy(update={"decoder": policy.decoder.model_copy(update={"vocab_size": 2048, "text_length": 32})})
    results = [
        pretrain_policy(
            PretrainConfig(
                policy=policy,
                data=data,
                output=tmp_path / name,
                steps=2,
                batch_size=4,
                warmup_steps=1,
                instructions=source,
                validation_frames=4,
            ),
            grammar=GRAMMAR,
        )
        for name, source in (("data", "data"), ("grammar", "grammar"), ("again", "grammar"))
    ]
    assert results[1].last_loss == results[2].last_loss != results[0].last_loss
    tokenizer = load_checkpoint(results[1].checkpoint).tokenizer
    assert all(len(tokenizer.spans(word)) == 1 for word in GRAMMAR_WORDS)


def test_a_checkpoint_may_learn_other_words(configure: Configure, tmp_path: Path, demonstrations: Path) -> None:
    first = train_policy(configure(tmp_path / "first", steps=1)).checkpoint
    before = load_checkpoint(first)
    config = train_config(
        str(first),
        data=demonstrations,
        output=tmp_path / "next",
        policy_changes={},
        steps=1,
        learning_rate=1e-12,
        vocab_size=2048,
        instructions="grammar",
    )
    result = train_policy(config, grammar=GRAMMAR)
    after = load_checkpoint(result.checkpoint)
    assert result.initialised == ("embedding.weight",)
    assert after.config.decoder.vocab_size == 2048
    assert all(len(after.tokenizer.spans(word)) == 1 for word in GRAMMAR_WORDS)
    assert len(before.tokenizer.spans("swivel")) > 1
    old, new = before.policy.state_dict(), after.policy.state_dict()
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old if not name.startswith("embedding"))

    plan = PretrainConfig(
        policy=with_vocabulary(before.config, 2048),
        initial_checkpoint=first,
        data=demonstrations,
        output=tmp_path / "seen",
        steps=1,
        batch_size=2,
        validation_frames=2,
        instructions="grammar",
        vocab_size=2048,
    )
    seen = load_checkpoint(pretrain_policy(plan, grammar=GRAMMAR).checkpoint)
    assert seen.policy.embedding.weight.shape[0] == 2048
    assert all(len(seen.tokenizer.spans(word)) == 1 for word in GRAMMAR_WORDS)
