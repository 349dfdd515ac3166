"""Training paradigms: exactly the right parameters learn, pre-training can be left out, and the counts are the paper's."""

import io
import signal
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

from rfedge.cli.app import main
from rfedge.config import PolicyConfig, preset
from rfedge.errors import ConfigError
from rfedge.model import RoboFlamingo, build_policy, load_checkpoint
from rfedge.train import TrainConfig, train_config, train_policy
from rfedge.train.config import TrainableScheme
from rfedge.train.trainable import freeze, reinit_vl_layers
from tests.errors import raises
from tests.synthetic_image_text import write_image_text
from tests.train.test_loop import KilledError, assert_same_weights, kill_after, weights
from tests.whole_windows import forward_window

Configure = Callable[..., TrainConfig]

LEARNS: dict[TrainableScheme, set[str]] = {
    "paper": {"resampler", "cross_attention", "embedding", "head"},
    "freeze-emb": {"resampler", "cross_attention", "head"},
    "full": {"vision", "resampler", "cross_attention", "decoder", "embedding", "head"},
    "head": {"head"},
}


@pytest.mark.parametrize("scheme", LEARNS)
def test_every_parameter_of_the_scheme_moves_and_no_other_bit(
    configure: Configure, tmp_path: Path, scheme: TrainableScheme
) -> None:
    config = configure(tmp_path / "run", steps=2, trainable=scheme, validate_every=0)
    train_policy(config)
    policy = build_policy(config.policy, config.seed)
    after = weights(tmp_path / "run")
    for group, parameters in policy.parameter_groups().items():
        for name, parameter in parameters:
            assert torch.equal(parameter, after[name]) == (group not in LEARNS[scheme]), name


@pytest.mark.parametrize("scheme", LEARNS)
def test_frozen_parameters_get_no_gradient(scheme: TrainableScheme) -> None:
    policy = build_policy(preset("tiny"), seed=0)
    trained = dict(freeze(policy, scheme))
    config = policy.config
    pose, gripper = forward_window(
        policy,
        torch.randint(0, 256, (1, 2, 200, 200, 3), dtype=torch.uint8),
        torch.randint(0, 256, (1, 2, 84, 84, 3), dtype=torch.uint8),
        torch.arange(5)[None] + 7,
        torch.ones(1, 5, dtype=torch.bool),
    )
    (pose.sum() + gripper.sum()).backward()
    for group, parameters in policy.parameter_groups().items():
        for name, parameter in parameters:
            assert (parameter.grad is not None) == (name in trained) == (group in LEARNS[scheme]), name
    assert pose.shape == (1, 2, config.chunk_size, 6)


# What the four decoders of Table 2 add up to, each from its own sizes (d = width, v = rows of the embedding):
#   ViT-L/14 without ln_post (2,048) and proj (1024 x 768), 303,966,208 in CLIP: the policy reads patch tokens.
VISION = 303_966_208 - 2_048 - 1_024 * 768
RESAMPLER = 63_019_008
#   One gated cross-attention: 2 gates, LN(d), q (512, d), kv (1024, 1024), out (d, 512), LN(d), feed-forward 8 d^2.
CROSS_ATTENTION = {
    2048: 24 * 36_708_354,  # before each of 24 blocks
    2560: 16 * 56_109_058,  # every second of 32
    4096: 8 * 139_476_994,  # every fourth of 32
}
#   LSTM with 4 layers of 1024 (16,777,216 d-independent + 4096 d) and the two MLPs 1024-1024-512-256-6 and -1.
HEAD = {2048: 41_194_759, 2560: 43_291_911, 4096: 49_583_367}
#   Blocks and final norm of the language models, without their word tables:
BLOCKS = {
    "M-3B": 24 * (12 * 2048**2 + 4 * 2048) + 2048,  # no biases; norms of q and k; MPT-1B
    "G-4B": 32 * (12 * 2560**2 + 13 * 2560) + 2 * 2560,  # biases everywhere; 2,775,864,320 with two tables of 50,432 rows
    "L-9B": 32 * (4 * 4096**2 + 3 * 4096 * 11_008 + 2 * 4096) + 4096,  # gated MLP; 6,738,415,616 with two of 32,000
    "M-9B": 32 * (12 * 4096**2 + 2 * 4096) + 4096,  # 6,649,286,656 with one table of 50,432 rows: MPT-7B
}
ROWS = {"M-3B": 50_280, "G-4B": 50_280, "L-9B": 32_003, "M-9B": 50_280}
WIDTH = {"M-3B": 2048, "G-4B": 2560, "L-9B": 4096, "M-9B": 4096}
TRAINABLE = {"M-3B": 1_088_187_703, "G-4B": 1_132_772_647, "L-9B": 1_359_502_615, "M-9B": 1_434_365_207}
TOTAL = {"M-3B": 2_599_523_639, "G-4B": 3_953_602_855, "L-9B": 8_138_951_959, "M-9B": 8_180_260_119}


def count(parameters: list[tuple[str, torch.nn.Parameter]]) -> int:
    return sum(parameter.numel() for _, parameter in parameters)


@pytest.mark.parametrize("name", ["M-3B", "M-3B-IFT", "G-4B", "G-4B-IFT", "L-9B", "M-9B"])
def test_parameters_of_table_2(name: str) -> None:
    with torch.device("meta"):
        policy = RoboFlamingo(preset(name))
    kind = name.removesuffix("-IFT")
    width = WIDTH[kind]
    groups = {group: count(parameters) for group, parameters in policy.parameter_groups().items()}
    assert groups == {
        "vision": VISION,
        "resampler": RESAMPLER,
        "cross_attention": CROSS_ATTENTION[width],
        "decoder": BLOCKS[kind],
        "embedding": ROWS[kind] * width,
        "head": HEAD[width],
    }
    assert count(freeze(policy, "paper")) == TRAINABLE[kind]
    assert count(freeze(policy, "freeze-emb")) == TRAINABLE[kind] - ROWS[kind] * width
    assert count(freeze(policy, "head")) == HEAD[width]
    assert count(freeze(policy, "full")) == sum(groups.values()) == TOTAL[kind]
    # "3B", "4B", "9B" and "1B trainable" in the table
    assert abs(TOTAL[kind] / 1e9 - int(kind[2:-1])) < 0.9
    assert round(TRAINABLE[kind] / 1e9) == 1


@pytest.mark.parametrize("gate", [0.0, 0.5])
def test_what_pre_training_made_is_drawn_anew(gate: float) -> None:
    config = preset("tiny")
    changed = {
        **config.model_dump(),
        "decoder": {**config.decoder.model_dump(), "gate_init": gate, "cross_attention_every": 2},
        "resampler": {**config.resampler.model_dump(), "per_camera": True},
    }
    policy = build_policy(PolicyConfig.model_validate(changed), seed=0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(0.25)
    state = torch.get_rng_state()
    reinit_vl_layers(policy, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    drawn = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    for group, parameters in policy.parameter_groups().items():
        for name, parameter in parameters:
            assert bool((parameter == 0.25).all()) == (group not in {"resampler", "cross_attention"}), name
    gates = [value for name, value in drawn.items() if name.endswith("gate")]
    assert [float(value) for value in gates] == [gate, gate]
    first, second = (drawn[f"backbone.{name}.latents"] for name in ("resampler", "resampler_gripper"))
    assert not torch.equal(first, second)
    reinit_vl_layers(policy, seed=1)
    assert all(torch.equal(parameter, drawn[name]) for name, parameter in policy.named_parameters())
    reinit_vl_layers(policy, seed=2)
    assert not torch.equal(policy.backbone.resampler.latents, drawn["backbone.resampler.latents"])


def test_a_run_without_vl_pretraining(configure: Configure, tmp_path: Path, demonstrations: Path) -> None:
    first = train_policy(configure(tmp_path / "first", steps=1))

    def start(output: Path, **options: object) -> TrainConfig:
        return train_config(
            str(first.checkpoint), data=demonstrations, output=output, policy_changes={}, vl_pretraining=False, **options
        )

    train_policy(start(tmp_path / "still", steps=1, learning_rate=1e-12, seed=5))
    expected = load_checkpoint(first.checkpoint).policy
    reinit_vl_layers(expected, seed=5)
    after = weights(tmp_path / "still")
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(after[name], parameter.detach(), atol=1e-7, rtol=0.0)
    train_policy(start(tmp_path / "whole", steps=3))
    with pytest.raises(KilledError):
        train_policy(start(tmp_path / "parts", steps=3, save_every=1), on_step=kill_after(2))
    train_policy(start(tmp_path / "parts", steps=3, save_every=1))
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    with raises(ConfigError, "no-vl-pretraining", got="preset tiny, all of it random", expected="a checkpoint..."):
        configure(tmp_path / "preset", vl_pretraining=False)


@pytest.fixture
def _keep_the_signal_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def rfedge_train(*arguments: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(["train", "--config", "tiny", *(str(argument) for argument in arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code, out.getvalue(), err.getvalue()


@pytest.mark.usefixtures("_keep_the_signal_handler")
def test_a_dry_run_counts_pairs_and_a_mistake_is_one_line(demonstrations: Path, tmp_path: Path) -> None:
    path = write_image_text(tmp_path / "pairs", num_images=20)
    arguments = ("--data", demonstrations, "--output", tmp_path / "run", "--image-text", path)
    code, out, _ = rfedge_train(*arguments, "--dry-run")
    assert code == 0
    assert "and 18 captions, 18 questions (2 captions, 2 questions held out; 36 images read) -> " in " ".join(out.split())
    path.write_text(path.read_text() + "{}\n")
    for more in (("--dry-run",), ("--steps", 1)):
        code, _, err = rfedge_train(*arguments, *more)
        assert code == 2
        (line,) = [line for line in err.splitlines() if line.startswith("rfedge: ")]
        assert f"image-text file {path}, line 41: got keys []" in line
    code, _, err = rfedge_train(*arguments, "--trainable", "head")
    assert (code, "image-text: got trainable head" in err) == (2, True)
    code, _, err = rfedge_train("--data", demonstrations, "--output", tmp_path / "run", "--no-vl-pretraining")
    assert (code, "no-vl-pretraining: got preset tiny" in err) == (2, True)
    assert not (tmp_path / "run").exists()
