"""Co-training: what the language model is taught, beside the robot's windows, and that a stop changes nothing."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from rfedge.config import GPTNeoXConfig, LlamaConfig, PolicyConfig, preset
from rfedge.data.image_text import ImageTextExample, open_image_text
from rfedge.errors import ConfigError, DatasetError
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model import RoboFlamingo, build_policy, load_checkpoint, save_checkpoint
from rfedge.train import TrainConfig, TrainingStep, train_config, train_policy
from rfedge.train.batches.image_text import NO_LABEL, CoTraining, ImageTextBatch, image_text_batch, language_loss
from tests.errors import raises
from tests.synthetic_demonstrations import TASKS
from tests.synthetic_image_text import QUESTIONS, WORDS, write_image_text
from tests.tolerances import backbone_terms, fp32_tolerance
from tests.train.test_loop import KilledError, assert_same_weights, kill_after, rows, weights

CORPUS = (*TASKS.values(), *WORDS * 3, *QUESTIONS * 3)


def tiny(**decoder: Any) -> PolicyConfig:
    policy = preset("tiny")
    changed = {**policy.model_dump(), "decoder": {**policy.decoder.model_dump(), "text_length": 24, **decoder}}
    return PolicyConfig.model_validate(changed)


def with_rotary(kind: str, *, output_projection: bool = True) -> PolicyConfig:
    sizes = {"width": 64, "layers": 2, "heads": 2, "vocab_size": 1024, "text_length": 24, "mlp_width": 128, "gate_init": 1.0}
    every = {**sizes, "cross_attention_heads": 2, "cross_attention_head_size": 32, "output_projection": output_projection}
    decoder = (
        GPTNeoXConfig.model_validate({"kind": kind, **every})
        if kind == "gpt_neox"
        else LlamaConfig.model_validate({"kind": kind, "key_value_heads": 2, **every})
    )
    return PolicyConfig.model_validate({**preset("tiny").model_dump(), "decoder": decoder.model_dump()})


@pytest.fixture(scope="session")
def tokenizer() -> InstructionTokenizer:
    return InstructionTokenizer.from_corpus(CORPUS, vocab_size=1024, text_length=24)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_text(tmp_path_factory.mktemp("pairs"), num_images=24)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: InstructionTokenizer) -> Path:
    return save(tmp_path_factory.mktemp("initial") / "checkpoint", tiny(), tokenizer)


def save(path: Path, config: PolicyConfig, tokenizer: InstructionTokenizer) -> Path:
    save_checkpoint(path, build_policy(config, seed=3), tokenizer, {})
    return path


@pytest.fixture
def co_train(demonstrations: Path, checkpoint: Path, pairs: Path) -> Callable[..., TrainConfig]:
    """Return a function (output, **options) -> TrainConfig of a small run with pairs."""

    def build(output: Path, initial: Path = checkpoint, **options: Any) -> TrainConfig:
        defaults: dict[str, Any] = {
            "steps": 4,
            "batch_size": 2,
            "validate_every": 0,
            "validation_windows": 4,
            "image_text": (pairs,),
            "image_text_batch_size": 4,
        }
        changed = {**defaults, **options}
        return train_config(str(initial), data=demonstrations, output=output, policy_changes={"window": 3}, **changed)

    return build


def example(image: Path, text: str, question: str = "") -> ImageTextExample:
    return ImageTextExample("vqa" if question else "caption", image, image.name, question, text, image, 0)


def said(tokenizer: InstructionTokenizer, batch: ImageTextBatch, row: int) -> str:
    ids = [int(label) for label in batch.labels[row] if label != NO_LABEL]
    return tokenizer._backend.decode(ids, skip_special_tokens=False)


def test_what_is_read_and_what_is_to_be_said(tokenizer: InstructionTokenizer, pairs: Path) -> None:
    image = pairs.parent / "images" / "000.jpg"
    captions = image_text_batch([example(image, "a red circle"), example(image, "a thing")], tokenizer, 32)
    whole = [int(token) for token in captions.token_ids[0] if token != tokenizer.pad_id]
    text = tokenizer._backend.decode(whole, skip_special_tokens=False)
    assert text.replace("> ", ">") == "<image>A photo of a red circle<|endofchunk|><|endoftext|>"
    assert said(tokenizer, captions, 0).strip() == "A photo of a red circle<|endofchunk|><|endoftext|>"
    assert said(tokenizer, captions, 1).strip() == "A photo of a thing<|endofchunk|><|endoftext|>"
    answers = image_text_batch(
        [example(image, "red", "What colour is it?"), example(image, "3 or 4", "How many?")], tokenizer, 32
    )
    assert said(tokenizer, answers, 0).strip() == "red<|endofchunk|><|endoftext|>"
    assert said(tokenizer, answers, 1).replace(" ", "") == "3or4<|endofchunk|><|endoftext|>"
    for batch in (captions, answers):
        assert (batch.labels[:, 0] == NO_LABEL).all()  # <image>
        padded = batch.token_ids == tokenizer.pad_id
        assert padded.any()
        assert (batch.labels[padded] == NO_LABEL).all()
        labelled = batch.labels != NO_LABEL
        assert torch.equal(batch.labels[labelled], batch.token_ids[labelled])
        assert batch.image.shape == (2, 32, 32, 3)


def test_long_texts_are_cut_and_an_answer_cut_off_teaches_nothing(tokenizer: InstructionTokenizer, pairs: Path) -> None:
    image = pairs.parent / "images" / "000.jpg"
    batch = image_text_batch([example(image, "a red circle " * 20)], tokenizer, 32)
    assert batch.token_ids.shape == (1, 24)
    cut_off = image_text_batch([example(image, "red", "What colour is it? " * 20)], tokenizer, 32)
    assert (cut_off.labels == NO_LABEL).all()
    policy = build_policy(tiny(), seed=0)
    loss, num_tokens = language_loss(policy, cut_off)
    loss.backward()
    assert (float(loss.detach()), num_tokens) == (0.0, 0)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in policy.parameters())


@pytest.mark.parametrize(
    "config",
    [tiny(), tiny(feature="last_block_input", cross_attention_every=2), with_rotary("gpt_neox"), with_rotary("llama")],
    ids=["final_norm", "last_block_input", "gpt_neox", "llama"],
)
def test_the_loss_is_that_of_whole_texts_one_by_one(
    config: PolicyConfig, tokenizer: InstructionTokenizer, pairs: Path
) -> None:
    """Against the sum written out: every pair alone, without padding, all layers and the final norm, all logits."""
    policy = build_policy(config, seed=0).eval()
    data = open_image_text([pairs], validation_fraction=0.0, seed=0)
    examples = data.training["vqa"].examples([0, 5]) + data.training["caption"].examples([2])
    decoder, total, count = policy.backbone.decoder, 0.0, 0
    with torch.no_grad():
        loss, num_tokens = language_loss(policy, image_text_batch(examples, tokenizer, 32))
        for one in examples:
            batch = image_text_batch([one], tokenizer, 32)
            preprocess = policy.backbone.preprocess_static
            pixels = batch.image.permute(0, 3, 1, 2).float() * preprocess.scale + preprocess.shift
            media = policy.backbone.resampler(policy.backbone.vision(pixels))
            x, length = policy.embedding(batch.token_ids), batch.token_ids.shape[1]
            rotary = None if decoder.rotary is None else decoder.rotary[:, :length]
            for layer in decoder.layers:
                x = layer(x, media, decoder.bias[:, :length, :length], rotary)
            projection = policy.embedding if policy.output_projection is None else policy.output_projection
            scores = functional.log_softmax(decoder.ln_f(x) @ projection.weight.T, dim=-1)[0]
            for place in range(1, length):
                label = int(batch.labels[0, place])
                if label != NO_LABEL:
                    total -= float(scores[place - 1, label])
                    count += 1
    assert num_tokens == count
    assert float(loss) == pytest.approx(total / count, rel=1e-4)


def test_an_image_goes_the_way_of_the_static_camera(tokenizer: InstructionTokenizer, tmp_path: Path) -> None:
    from PIL import Image

    frame = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(frame).save(tmp_path / "frame.png")
    policy = build_policy(tiny(), seed=0).eval()
    preprocess = policy.backbone.preprocess_static
    seen: list[torch.Tensor] = []
    handle = policy.backbone.vision.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        language_loss(policy, image_text_batch([example(tmp_path / "frame.png", "noise")], tokenizer, 32))
    handle.remove()
    camera = preprocess(torch.from_numpy(frame)[None])
    one_level = float(preprocess.scale.max())
    assert float((seen[0] - camera).abs().max()) <= 1.01 * one_level


def mean_of(run: Path, name: str, part: slice) -> float:
    return float(np.mean([row[name] for row in rows(run) if name in row][part]))


def test_both_losses_fall(co_train: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = co_train(
        tmp_path / "run",
        steps=60,
        validate_every=30,
        learning_rate=1e-3,
        head_rate=1.0,
        schedule="constant",
        batch_size=3,
        trainable="paper",
        caption_weight=0.1,
        image_text_batch_size=8,
    )
    result = train_policy(config)
    first, last = slice(0, 10), slice(-10, None)
    assert mean_of(tmp_path / "run", "caption_loss", last) < 0.5 * mean_of(tmp_path / "run", "caption_loss", first)
    assert mean_of(tmp_path / "run", "vqa_loss", last) < 0.5 * mean_of(tmp_path / "run", "vqa_loss", first)
    assert mean_of(tmp_path / "run", "pose_loss", last) < 0.85 * mean_of(tmp_path / "run", "pose_loss", first)
    measured = [row for row in rows(tmp_path / "run") if "validation_caption_perplexity" in row]
    assert [row["step"] for row in measured] == [30, 60]
    assert result.validation_caption_perplexity == measured[-1]["validation_caption_perplexity"]
    assert result.validation_caption_perplexity == pytest.approx(math.exp(measured[-1]["validation_caption_loss"]))
    assert result.validation_vqa_perplexity is not None
    assert result.validation_caption_perplexity is not None
    assert result.validation_caption_perplexity < 10  # one that knows nothing has some 400, as many as there are tokens
    metadata = load_checkpoint(result.checkpoint).metadata
    assert metadata["image_text"]["num_training"] == {"caption": 22, "vqa": 22}
    assert metadata["image_text"]["num_held_out"] == {"caption": 2, "vqa": 2}
    assert metadata["training"]["vqa_weight"] == 0.5


def test_straight_equals_killed_and_resumed(co_train: Callable[..., TrainConfig], tmp_path: Path) -> None:
    options = {"steps": 6, "save_every": 3, "validate_every": 4, "head_first_steps": 1, "head_first_batch_size": 4}
    train_policy(co_train(tmp_path / "whole", **options))
    with pytest.raises(KilledError):
        train_policy(co_train(tmp_path / "parts", **options), on_step=kill_after(5))
    state = json.loads((tmp_path / "parts" / "state" / "step-0000003" / "state.json").read_text())
    assert state["progress"]["image_text"] == {kind: {"epoch": 0, "position": 8} for kind in ("caption", "vqa")}
    train_policy(co_train(tmp_path / "parts", **options))
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    losses = [row for row in rows(tmp_path / "whole") if "loss" in row]
    assert ["caption_loss" in row for row in losses] == [False, True, True, True, True, True]


@pytest.mark.parametrize("kind", ["caption", "vqa"])
def test_a_file_of_one_kind_teaches_that_alone(co_train: Callable[..., TrainConfig], tmp_path: Path, kind: str) -> None:
    path = write_image_text(tmp_path / "pairs", num_images=6)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if ("caption" in line) == (kind == "caption")))
    result = train_policy(co_train(tmp_path / "run", image_text=(path,), steps=1, validation_fraction=0.0))
    row = rows(tmp_path / "run")[0]
    assert {name for name in row if name.endswith(("caption_loss", "vqa_loss"))} == {f"{kind}_loss"}
    assert (result.validation_caption_perplexity, result.validation_vqa_perplexity) == (None, None)


def test_the_gradients_of_both_kinds_are_added_with_their_weights(
    co_train: Callable[..., TrainConfig], tokenizer: InstructionTokenizer, tmp_path: Path
) -> None:
    path = write_image_text(tmp_path / "pairs", num_images=5)
    config = co_train(tmp_path / "run", image_text=(path,), image_text_batch_size=5, caption_weight=0.25, vqa_weight=2.0)
    data = open_image_text([path], validation_fraction=0.0, seed=0)
    policy = build_policy(config.policy, seed=0).eval()
    robot_loss = policy.embedding.weight.square().sum() + policy.backbone.resampler.latents.sum()
    robot_loss.backward()
    with CoTraining(data, tokenizer, config, torch.device("cpu"), {}) as co_training:
        passes, states = co_training.passes(policy)
        metrics = {}
        for pairs in passes:
            loss = pairs.loss()
            (pairs.weight * loss).backward()
            metrics[pairs.name] = float(loss.detach())
    added = {name: parameter.grad for name, parameter in policy.named_parameters()}
    assert {kind: (state.epoch, state.position) for kind, state in states.items()} == {"caption": (1, 0), "vqa": (1, 0)}
    policy.zero_grad()
    losses = {
        kind: language_loss(policy, image_text_batch(part.examples(range(5)), tokenizer, 32))[0]
        for kind, part in data.training.items()
    }
    robot_loss = policy.embedding.weight.square().sum() + policy.backbone.resampler.latents.sum()
    (robot_loss + 0.25 * losses["caption"] + 2.0 * losses["vqa"]).backward()
    rounding = fp32_tolerance(2 * backbone_terms(policy.config))  # there and back
    largest = max(float(p.grad.abs().max()) for p in policy.parameters() if p.grad is not None)
    assert metrics == pytest.approx({f"{kind}_loss": float(loss.detach()) for kind, loss in losses.items()}, rel=rounding)
    for name, parameter in policy.named_parameters():
        if name.startswith("head."):
            assert added[name] is None
            assert parameter.grad is None
        else:
            torch.testing.assert_close(added[name], parameter.grad, atol=rounding * largest, rtol=0.0)


def test_a_measurement_does_not_depend_on_the_batch_size(
    co_train: Callable[..., TrainConfig], tokenizer: InstructionTokenizer, tmp_path: Path
) -> None:
    path = write_image_text(tmp_path / "pairs", num_images=4, questions=False)
    path.write_text(path.read_text().replace('"a green circle"', '"a green circle and a blue square"'))
    data = open_image_text([path], validation_fraction=0.7, seed=0)
    policy = build_policy(tiny(), seed=0).eval()
    values = [
        CoTraining(data, tokenizer, co_train(tmp_path, image_text_batch_size=size), torch.device("cpu"), {}).measure(policy)
        for size in (1, 2, 9)
    ]
    assert len(data.held_out["caption"]) == 3
    for other in values[1:]:
        assert values[0] == pytest.approx(other, rel=fp32_tolerance(backbone_terms(policy.config)))


def test_pairs_without_weight_are_measured_alone(
    co_train: Callable[..., TrainConfig], tokenizer: InstructionTokenizer, tmp_path: Path
) -> None:
    initial = save(tmp_path / "initial", tiny(feature="last_block_input"), tokenizer)
    train_policy(co_train(tmp_path / "alone", initial, image_text=()))
    measured = train_policy(co_train(tmp_path / "zero", initial, caption_weight=0.0, vqa_weight=0.0))
    train_policy(co_train(tmp_path / "some", initial))
    assert_same_weights(tmp_path / "alone", tmp_path / "zero")
    assert measured.validation_caption_perplexity is not None
    assert all("vqa_loss" in row for row in rows(tmp_path / "zero") if "loss" in row)
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "alone", tmp_path / "some")


def test_a_damaged_image_ends_the_run_which_goes_on_when_it_is_mended(
    co_train: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    path = write_image_text(tmp_path / "pairs", num_images=6)
    whole, parts = (co_train(tmp_path / name, image_text=(path,), save_every=1, steps=4) for name in ("whole", "parts"))
    train_policy(whole)
    image = path.parent / "images" / "003.png"
    content = image.read_bytes()

    def damage(report: TrainingStep) -> None:
        image.write_bytes(content[: len(content) // 2])

    with raises(DatasetError, "...pairs.jsonl, line ...", got="image 'images/003.png' (image file is truncated)"):
        train_policy(parts, on_step=damage)
    image.write_bytes(content)
    train_policy(parts)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_other_pairs_are_refused_on_resume(co_train: Callable[..., TrainConfig], tmp_path: Path, pairs: Path) -> None:
    train_policy(co_train(tmp_path / "run", steps=1))
    other = write_image_text(tmp_path / "other", num_images=5)
    with raises(ConfigError, "image-text files of the run in ...", expected="...with which it was started"):
        train_policy(co_train(tmp_path / "run", steps=2, image_text=(other,)))
    with raises(ConfigError, "image-text files of the run in ...", got=""):
        train_policy(co_train(tmp_path / "run", steps=2, image_text=()))
    assert train_policy(co_train(tmp_path / "run", steps=2)).steps == 2


def test_the_last_block_that_no_action_reads_learns_from_pairs(
    co_train: Callable[..., TrainConfig], tokenizer: InstructionTokenizer, tmp_path: Path
) -> None:
    initial = save(tmp_path / "initial", tiny(feature="last_block_input"), tokenizer)
    before = load_checkpoint(initial).policy.state_dict()
    for name, image_text in (("alone", {"image_text": ()}), ("pairs", {})):
        train_policy(co_train(tmp_path / name, initial, trainable="paper", steps=2, **image_text))
        after = weights(tmp_path / name)
        last = [key for key in after if key.startswith("backbone.decoder.layers.1.cross_attention.")]
        assert last
        for key in last:
            assert torch.equal(before[key], after[key]) == (name == "alone"), key


def test_pairs_need_an_output_projection_and_something_that_learns(
    co_train: Callable[..., TrainConfig], tokenizer: InstructionTokenizer, tmp_path: Path
) -> None:
    bare = save(tmp_path / "bare", with_rotary("gpt_neox", output_projection=False), tokenizer)
    with raises(ConfigError, "image-text", got="a gpt_neox decoder without its output projection"):
        co_train(tmp_path / "run", bare)
    assert co_train(tmp_path / "run", bare, image_text=()).policy.decoder.kind == "gpt_neox"
    with raises(ConfigError, "image-text", got="trainable head...", expected="...paper, freeze-emb, freeze-vision or full"):
        co_train(tmp_path / "run", trainable="head")
    with raises(ConfigError, "caption_weight", got="-1..."):
        co_train(tmp_path / "run", caption_weight=-1.0)


@pytest.mark.parametrize("kind", ["gpt_neox", "llama"])
def test_rotary_decoders_learn_from_pairs(
    co_train: Callable[..., TrainConfig], tokenizer: InstructionTokenizer, tmp_path: Path, kind: str
) -> None:
    initial = save(tmp_path / "initial", with_rotary(kind), tokenizer)
    train_policy(co_train(tmp_path / "run", initial, trainable="paper", steps=2))
    before, after = load_checkpoint(initial).policy, weights(tmp_path / "run")
    assert isinstance(before, RoboFlamingo)
    assert torch.equal(before.state_dict()["output_projection.weight"], after["output_projection.weight"])
    assert not torch.equal(before.embedding.weight, after["embedding.weight"])
