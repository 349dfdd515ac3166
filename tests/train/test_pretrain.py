"""Vision-language pre-training: what is asked about a frame, how it is said, and runs that go on where they stopped."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rfedge.config import preset
from rfedge.data.calvin import CalvinDataset
from rfedge.data.frame_cache import FrameCache
from rfedge.data.merging import merge_datasets
from rfedge.data.scene.questions import COLOURS, NUMBERS, QUESTION_WORDS, SceneFacts, ask_report, ask_request
from rfedge.data.windows import WindowIndex
from rfedge.errors import ConfigError, DatasetError
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model import build_policy, load_checkpoint, save_checkpoint
from rfedge.model.checkpoint import HEAD_IS_UNTRAINED
from rfedge.train import TrainingStep, train_config, train_policy
from rfedge.train.batches.image_text import NO_LABEL
from rfedge.train.batches.vision_tokens import TOKENS_FOLDER, with_vision_tokens
from rfedge.train.pretraining.config import PretrainConfig
from rfedge.train.pretraining.pointing import (
    Pointing,
    SceneBatch,
    SceneQuestions,
    VisionFeatures,
    encode_images,
    number_ids,
    patch_shares,
    scene_score,
)
from rfedge.train.pretraining.pretrain import pretrain_policy
from rfedge.train.sources import start_policy
from tests.errors import raises
from tests.synthetic_demonstrations import write_demonstrations


def _facts(**changes: object) -> SceneFacts:
    values: dict[str, np.ndarray] = {
        "blocks_m": np.array([[[0.102, -0.098, 0.462], [0.002, 0.002, 0.462], [-0.198, -0.048, 0.462]]]),
        "turns_rad": np.array([[0.0, np.pi / 2 + 0.01, -0.01]]),
        "furniture_m": np.zeros((1, 4, 3)),
        "joints_m": np.array([[0.28, 0.0]]),
        "lights": np.array([[True, False]]),
        "tool_euler_rad": np.array([[np.pi, 0.0, 0.5]]),
        "tool_m": np.array([[0.103, -0.097, 0.4735]]),
        "width_m": np.array([0.04]),
        "goal_m": np.array([[0.202, -0.148, 0.622]]),
    }
    return SceneFacts(**{**values, **changes})  # type: ignore[arg-type]


def _report(facts: SceneFacts, seed: int = 0) -> dict[str, str]:
    """All that a report may say: it names six things at a time."""
    said: dict[str, str] = {}
    rng = np.random.default_rng(seed)
    for _ in range(40):
        pieces = ask_report(facts, 0, rng)
        assert len(pieces) == 12
        assert [piece.is_said for piece in pieces] == [False, True] * 6
        said |= {name.words: answer.words for name, answer in zip(pieces[::2], pieces[1::2], strict=True)}
    return said


def test_a_report_says_where_and_how_things_are() -> None:
    said = _report(_facts())
    assert said["red block"] == "120 70 52"  # 0.102 + 0.5, -0.098 + 0.45, 0.462 - 0.2 in steps of 5 mm
    assert said["reach red block"] == "99 99 97"
    assert said["reach pink block"] == "39 109 97"
    assert said["gripper"] == "120 70 54"
    assert (said["turn red block"], said["turn blue block"], said["turn pink block"]) == ("0", "18", "35")
    assert (said["door"], said["drawer"], said["lamp"], said["led"]) == ("40", "0", "on", "off")
    assert said["holds"] == "red"
    assert len(said) == 15


@pytest.mark.parametrize("width_m", [0.0, 0.08])
def test_fingers_that_are_closed_or_open_hold_nothing(width_m: float) -> None:
    assert _report(_facts(width_m=np.array([width_m])))["holds"] == "nothing"


def test_places_beyond_the_workspace_are_its_edges() -> None:
    said = _report(_facts(tool_m=np.array([[-5.0, 5.0, 0.302]])))
    assert said["gripper"] == "0 199 20"


def test_a_request_is_answered_by_the_next_goal() -> None:
    pieces = ask_request(_facts(), 0, "lift the red block")
    assert [(piece.words, piece.is_said) for piece in pieces] == [
        ("lift the red block", False), ("where", False), ("140 60 84", True), ("move", False), ("119 89 129", True)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CalvinDataset:
    return CalvinDataset.open(write_demonstrations(tmp_path_factory.mktemp("data"), episodes_per_task=2, num_frames=10))


def _tokenizer(dataset: CalvinDataset) -> InstructionTokenizer:
    return InstructionTokenizer.from_corpus((*dataset.instructions, *QUESTION_WORDS * 2), vocab_size=1024, text_length=16)


def test_facts_follow_the_frames_and_the_scene(dataset: CalvinDataset, tmp_path: Path) -> None:
    cache = FrameCache.open(dataset, folder=tmp_path / "cache")
    index = WindowIndex(dataset.segments, [1, 0], window=1)
    facts = SceneFacts.of(dataset, cache, index)
    second = dataset.segments[1]
    frame = dataset.frame(second.start + 3, ("scene_obs", "robot_obs"))
    # Scene D: red, blue, pink at elements 6, 12 and 18.
    np.testing.assert_allclose(facts.blocks_m[3], frame["scene_obs"][6:].reshape(3, 6)[:, :3], rtol=1e-6)
    np.testing.assert_allclose(facts.turns_rad[3], frame["scene_obs"][[11, 17, 23]], rtol=1e-6)
    np.testing.assert_allclose(facts.tool_m[3], frame["robot_obs"][:3], rtol=1e-6)
    # The label of the gripper changes at frame 5 of 10, and the goal with it.
    tools = cache.robot_obs[cache.row(second.start) : cache.row(second.start) + 10, :3]
    np.testing.assert_array_equal(facts.goal_m[:5], np.repeat(tools[5:6], 5, axis=0))
    np.testing.assert_array_equal(facts.goal_m[5:10], np.repeat(tools[9:10], 5, axis=0))


def test_the_order_of_blocks_is_the_scenes(dataset: CalvinDataset, tmp_path: Path) -> None:
    cache = FrameCache.open(dataset, folder=tmp_path / "cache")
    index = WindowIndex(dataset.segments, [0], window=1)
    of_a = CalvinDataset(
        dataset.folder,
        dataset.segments,
        dataset.episodes,
        tuple(type(scene)("A", scene.first, scene.last) for scene in dataset.scenes),
    )
    in_d, in_a = SceneFacts.of(dataset, cache, index), SceneFacts.of(of_a, cache, index)
    assert COLOURS == ("red", "blue", "pink")
    np.testing.assert_array_equal(in_a.blocks_m, in_d.blocks_m[:, [2, 1, 0]])  # A has pink, blue, red
    unknown = CalvinDataset(dataset.folder, dataset.segments, dataset.episodes, ())
    with raises(DatasetError, got="10 frames of an unknown scene", expected="scene_info.npy..."):
        SceneFacts.of(unknown, cache, index)


def test_only_answers_are_learnt_and_every_number_is_one_token(dataset: CalvinDataset, tmp_path: Path) -> None:
    cache = FrameCache.open(dataset, folder=tmp_path / "cache")
    index = WindowIndex(dataset.segments, window=1)
    tokenizer = _tokenizer(dataset)
    ids = number_ids(tokenizer)
    assert len(set(ids.tolist())) == len(NUMBERS) == 200
    questions = SceneQuestions(index, cache, SceneFacts.of(dataset, cache, index), tokenizer)
    batch = questions.batch([0, 7], np.random.default_rng(0))
    assert batch.image_static.shape == (2, 200, 200, 3)
    assert len(batch.token_ids) == len(batch.labels) == 4
    said = batch.labels != NO_LABEL
    assert torch.equal(batch.labels[said], batch.token_ids[said])
    request = batch.labels[1][said[1]]
    assert torch.isin(request, ids).all()
    assert len(request) == 6
    # The instruction stands there as the policy reads it.
    encoded, mask = tokenizer.encode(dataset.segments[0].instruction)
    words = encoded[mask][:-2]  # without the end of the prompt
    np.testing.assert_array_equal(batch.token_ids[1, : len(words)].numpy(), words)
    again = questions.batch([0, 7], np.random.default_rng(0))
    assert torch.equal(again.token_ids, batch.token_ids)


def test_a_tokenizer_without_numbers_is_refused(dataset: CalvinDataset) -> None:
    few = InstructionTokenizer.from_corpus(dataset.instructions, vocab_size=300, text_length=16)
    with raises(ConfigError, "tokenizer", got="several tokens for the number ...", expected="one token for each..."):
        number_ids(few)


def test_the_score_counts_what_was_said_right(dataset: CalvinDataset, tmp_path: Path) -> None:
    cache = FrameCache.open(dataset, folder=tmp_path / "cache")
    index = WindowIndex(dataset.segments, window=1)
    tokenizer = _tokenizer(dataset)
    questions = SceneQuestions(index, cache, SceneFacts.of(dataset, cache, index), tokenizer)
    batch, numbers = questions.batch([1, 2, 3], np.random.default_rng(0)), number_ids(tokenizer)
    policy = build_policy(preset("tiny"), seed=0).eval()
    score = scene_score(policy, batch, encode_images(policy, batch), numbers)
    with torch.no_grad():
        media = policy.backbone.observe(batch.image_static, batch.image_gripper)
        total, right, distances = 0.0, 0, []
        for row in range(6):
            hidden = policy.backbone.decoder.tokens(
                policy.embed_text(batch.token_ids[row : row + 1, :-1]), media[row // 2 : row // 2 + 1], feature="final_norm"
            )
            logits = policy.logits(hidden)[0]
            for place, wanted in enumerate(batch.labels[row, 1:].tolist()):
                if wanted == NO_LABEL:
                    continue
                total -= float(logits[place].log_softmax(dim=-1)[wanted])
                right += int(int(logits[place].argmax()) == wanted)
                if wanted in numbers:
                    known = numbers.tolist()
                    distances.append(abs(int(logits[place][numbers].argmax()) - known.index(wanted)))
    assert score.num_tokens == int((batch.labels[:, 1:] != NO_LABEL).sum())
    assert float(score.loss.detach()) == pytest.approx(total / score.num_tokens, rel=1e-4)
    assert score.num_right == right
    assert score.distances.tolist() == distances


def _config(dataset: CalvinDataset, output: Path, **options: object) -> PretrainConfig:
    values = {
        "steps": 6,
        "batch_size": 4,
        "validate_every": 3,
        "save_every": 2,
        "num_threads": 1,
        "validation_fraction": 0.25,
    }
    return PretrainConfig(policy=preset("tiny"), data=dataset.folder, output=output, **{**values, **options})  # type: ignore[arg-type]


def test_a_run_that_was_stopped_ends_as_one_that_was_not(dataset: CalvinDataset, tmp_path: Path) -> None:
    whole = pretrain_policy(_config(dataset, tmp_path / "whole"))

    class KilledError(Exception):
        pass

    def kill(report: TrainingStep) -> None:
        if report.step == 5:
            raise KilledError

    with pytest.raises(KilledError):
        pretrain_policy(_config(dataset, tmp_path / "parts"), on_step=kill)
    assert not (tmp_path / "parts" / "checkpoint").exists()
    steps: list[int] = []
    resumed = pretrain_policy(_config(dataset, tmp_path / "parts"), on_step=lambda report: steps.append(report.step))
    assert steps == [5, 6]
    assert resumed.last_loss == whole.last_loss
    assert resumed.validation == whole.validation
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    for row in (*rows[0], *rows[1]):
        row.pop("frames_per_second", None)
    assert rows[0] == rows[1]
    before, after = (load_checkpoint(tmp_path / name / "checkpoint").policy.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_backbone_learns_and_the_head_stays(dataset: CalvinDataset, tmp_path: Path) -> None:
    result = pretrain_policy(_config(dataset, tmp_path / "run", steps=40, learning_rate=3e-3, warmup_steps=5))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["language_loss"] for row in rows if "language_loss" in row]
    assert len(losses) == 40
    assert losses[-1] < 0.6 * losses[0]
    loaded = load_checkpoint(result.checkpoint)
    drawn = build_policy(preset("tiny"), seed=0).state_dict()
    changed = {
        name.split(".")[0] for name, tensor in loaded.policy.state_dict().items() if not torch.equal(tensor, drawn[name])
    }
    assert changed == {"backbone", "embedding"}
    assert loaded.metadata["pretraining"]["steps"] == 40


def test_queries_that_point_nowhere_are_off_by_the_way_from_the_middle() -> None:
    """And the gripper's camera answers for what is near alone."""
    middle = torch.tensor([0.0, -0.08, 0.48])
    places = torch.stack([middle + 0.3, middle, middle + torch.tensor([0.0, 0.03, 0.04]), *4 * [middle], middle])[None]
    pointing = Pointing(16)
    for queries in (pointing.static, pointing.gripper, pointing.latents):
        torch.nn.init.zeros_(queries.place.weight)
        torch.nn.init.zeros_(queries.place.bias)
    tokens = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
    score = pointing(VisionFeatures(tokens, tokens, tokens), _batch_of(places))
    torch.testing.assert_close(score.blocks_m, torch.tensor([[0.3 * 3**0.5, 0.0, 0.05]]))
    torch.testing.assert_close(score.reach_m, torch.tensor([0.0, 0.05]))
    assert float(score.loss.detach()) > 0


def test_queries_learn_where_to_look() -> None:
    """One of the tokens is marked, and where it lies is what its others say."""
    rng = torch.Generator().manual_seed(0)
    pointing = Pointing(16)
    optimizer = torch.optim.Adam(pointing.parameters(), lr=0.02)
    losses = []
    for _ in range(300):
        tokens = torch.randn(32, 4, 16, generator=rng)
        marked = torch.randint(4, (32,), generator=rng)
        tokens[..., 0] = -3.0
        tokens[torch.arange(32), marked, 0] = 3.0
        place = 0.05 * tokens[torch.arange(32), marked, 1:4]
        score = pointing(VisionFeatures(tokens, tokens, tokens), _batch_of(place[:, None].repeat(1, 8, 1)))
        optimizer.zero_grad()
        score.loss.backward()
        optimizer.step()
        losses.append(float(score.loss.detach()))
    assert np.mean(losses[-20:]) < 0.3 * np.mean(losses[:20])


def _batch_of(places_m: torch.Tensor) -> SceneBatch:
    nothing, count = torch.empty(0), len(places_m)
    nowhere = torch.full((count, 8, 2), torch.nan)
    return SceneBatch(
        nothing, nothing, nothing, nothing, places_m, torch.zeros(count, 3, 2), nowhere, nowhere[:, :7].clone()
    )


def test_a_point_is_shared_among_the_patches_around_it() -> None:
    uv = torch.tensor([[0.375, 0.125], [0.5, 0.25], [0.0, 1.0], [1.01, 0.5], [torch.nan, 0.5]])
    shares = patch_shares(uv, 16).unflatten(-1, (4, 4))
    assert shares[0, 0, 1] == 1, "the middle of the second patch of the first row"
    torch.testing.assert_close(shares[1, :2, 1:3], torch.full((2, 2), 0.25))
    assert shares[2, 3, 0] == 1, "a corner is the corner patch's"
    torch.testing.assert_close(shares.sum(dim=(1, 2)), torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]))


def test_the_attention_of_queries_is_pulled_to_the_patch_of_a_thing() -> None:
    """Whatever it reads there: the right patch has the lower loss."""
    pointing, tokens = Pointing(16), torch.zeros(1, 16, 16)
    tokens[0, 5, 0] = 8.0
    batch = _batch_of(torch.zeros(1, 8, 3))
    losses = {}
    for name, uv in (("right", (0.375, 0.375)), ("wrong", (0.875, 0.875))):
        there = dataclasses.replace(batch, uv_static=torch.tensor(uv).expand(1, 8, 2))
        for parameter in pointing.static.look.parameters():
            torch.nn.init.zeros_(parameter)
        pointing.static.look.weight.data[:, 0] = 2.0
        losses[name] = float(pointing(VisionFeatures(tokens, tokens, tokens), there).loss.detach())
    assert losses["right"] < losses["wrong"] - 1


def test_a_tower_learns_to_point_without_texts(dataset: CalvinDataset, tmp_path: Path) -> None:
    result = pretrain_policy(_config(dataset, tmp_path / "run", language_weight=0.0, light=0.1))
    assert result.last_loss < result.first_loss
    assert "validation_reach_median_mm" in result.validation
    assert not any("language" in name for name in result.validation)
    before = build_policy(preset("tiny"), seed=0).state_dict()
    after = load_checkpoint(result.checkpoint).policy.state_dict()
    assert torch.equal(after["backbone.decoder.ln_f.weight"], before["backbone.decoder.ln_f.weight"])
    assert not torch.equal(after["backbone.vision.conv1.weight"], before["backbone.vision.conv1.weight"])


def test_a_tower_learns_from_a_checkpoint_whose_tokenizer_has_no_numbers(dataset: CalvinDataset, tmp_path: Path) -> None:
    few = InstructionTokenizer.from_corpus(dataset.instructions, vocab_size=300, text_length=16)
    save_checkpoint(tmp_path / "initial", build_policy(preset("tiny"), seed=0), few, {})
    config = _config(dataset, tmp_path / "run", language_weight=0.0, initial_checkpoint=tmp_path / "initial")
    assert pretrain_policy(config).steps > 0


def test_pretraining_goes_on_from_a_checkpoint(dataset: CalvinDataset, tmp_path: Path) -> None:
    first = pretrain_policy(_config(dataset, tmp_path / "first"))
    config = _config(dataset, tmp_path / "second", initial_checkpoint=first.checkpoint, learning_rate=1e-9)
    second = load_checkpoint(pretrain_policy(config).checkpoint)
    before = load_checkpoint(first.checkpoint)
    for name, tensor in second.policy.state_dict().items():
        torch.testing.assert_close(tensor, before.policy.state_dict()[name], atol=1e-6, rtol=0)
    assert second.metadata["initial"]["pretraining"]["steps"] == first.steps
    assert second.metadata[HEAD_IS_UNTRAINED]
    assert (
        second.tokenizer.encode("pull the drawer open")[0].tolist()
        == before.tokenizer.encode("pull the drawer open")[0].tolist()
    )


def test_imitation_starts_from_a_pretrained_backbone_with_a_new_head(dataset: CalvinDataset, tmp_path: Path) -> None:
    result = pretrain_policy(_config(dataset, tmp_path / "run"))
    config = train_config(
        str(result.checkpoint),
        data=dataset.folder,
        output=tmp_path / "train",
        policy_changes={"window": 4},
        steps=2,
        batch_size=2,
    )
    start = start_policy(config)
    assert start.head_is_new
    assert {name.split(".")[0] for name in start.initialised} == {"head"}
    trained = train_policy(config)
    history = load_checkpoint(trained.checkpoint).metadata["initial"]
    assert history["pretraining"]["steps"] == result.steps
    assert history["pretraining"]["scenes"] == ["D"]


def test_states_of_other_options_are_refused(dataset: CalvinDataset, tmp_path: Path) -> None:
    pretrain_policy(_config(dataset, tmp_path / "run", steps=2))
    with raises(ConfigError, "learning_rate..."):
        pretrain_policy(_config(dataset, tmp_path / "run", steps=4, learning_rate=1e-3))


@pytest.mark.parametrize(("mixed_precision", "rtol"), [("no", 2e-3), ("bf16", 2e-2)])
def test_a_frozen_tower_looks_at_each_frame_once(
    dataset: CalvinDataset, tmp_path: Path, mixed_precision: str, rtol: float
) -> None:
    """The same training from tokens on disk as from images, but for fp16 tokens."""
    result = pretrain_policy(_config(dataset, tmp_path / "run"))
    losses = {}
    for vision_tokens in (False, True):
        output = tmp_path / f"train-{vision_tokens}"
        config = train_config(
            str(result.checkpoint),
            data=dataset.folder,
            output=output,
            policy_changes={"window": 4},
            steps=6,
            batch_size=3,
            head_first_steps=2,
            trainable="freeze-vision",
            augmentation="none",
            vision_tokens=vision_tokens,
            mixed_precision=mixed_precision,
            cache=tmp_path / "data" / "cache",
        )
        trained = train_policy(config)
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        losses[vision_tokens] = [row["loss"] for row in rows if "loss" in row]
    assert len(losses[True]) == 6
    np.testing.assert_allclose(losses[True], losses[False], rtol=rtol)
    before, after = (
        load_checkpoint(path).policy.backbone.vision.state_dict() for path in (result.checkpoint, trained.checkpoint)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    (tokens,) = (tmp_path / "data" / TOKENS_FOLDER).iterdir()
    static = np.load(tokens / "static.npy", mmap_mode="r")
    assert static.dtype == np.float16
    assert static.shape == (40, 16, 64)
    changed = (tokens / "tokens.json").stat().st_mtime_ns
    train_policy(config.model_copy(update={"output": tmp_path / "again"}))
    assert (tokens / "tokens.json").stat().st_mtime_ns == changed, "found, not computed again"


def test_frames_that_a_tower_has_seen_are_not_looked_at_again(dataset: CalvinDataset, tmp_path: Path) -> None:
    """Data that grew costs what was added; another tower or other MatMuls start afresh."""
    other = CalvinDataset.open(write_demonstrations(tmp_path / "other", episodes_per_task=1, num_frames=5, seed=7))
    merged = merge_datasets([dataset.folder, other.folder], tmp_path / "merged").folder
    before, after = (FrameCache.open(CalvinDataset.open(folder)) for folder in (dataset.folder, merged))
    policy = build_policy(preset("tiny"), seed=0)
    seen: list[int] = []
    policy.backbone.vision.register_forward_hook(lambda module, given, tokens: seen.append(len(tokens)))

    def tokens_of(cache: FrameCache, **options: Any) -> FrameCache:
        seen.clear()
        return with_vision_tokens(cache, policy, tmp_path / "tokens", torch.device("cpu"), **options)

    small = tokens_of(before)
    assert sum(seen) == 2 * 40
    grown = tokens_of(after)
    assert sum(seen) == 2 * 10, "both cameras of what was added"
    assert np.array_equal(grown.rgb_static[:40], small.rgb_static)
    assert np.array_equal(grown.rgb_gripper[:40], small.rgb_gripper)
    afresh = with_vision_tokens(after, policy, tmp_path / "afresh", torch.device("cpu"))
    np.testing.assert_allclose(grown.rgb_static, afresh.rgb_static, rtol=2e-3, atol=2e-3)  # of batches of other sizes
    tokens_of(after, mixed_precision="bf16")
    assert sum(seen) == 2 * 50
    with torch.no_grad():
        policy.backbone.vision.conv1.weight.add_(0.01)
    tokens_of(after)
    assert sum(seen) == 2 * 50


def test_a_tower_that_learns_cannot_look_once(dataset: CalvinDataset, tmp_path: Path) -> None:
    with raises(ConfigError, "vision-tokens", got="trainable full, augmentation none", expected="a frozen vision tower..."):
        train_config("tiny", data=dataset.folder, output=tmp_path, policy_changes={}, steps=2, vision_tokens=True)
