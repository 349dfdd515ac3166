"""nf4 and llm-int8 in the torch backend: what they do where bitsandbytes is, and what is said where it is not."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rfedge.config import preset
from rfedge.errors import BackendUnavailableError, ConfigError
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.messages import Observation
from rfedge.model import build_policy, save_checkpoint
from rfedge.model.bitsandbytes_weights import WEIGHT_FORMATS, keep_weights_in, stored_bytes
from rfedge.runtimes import EdgePolicy, RuntimeSettings
from rfedge.runtimes.backends.base import TORCH_WEIGHTS
from rfedge.runtimes.backends.reference import try_bitsandbytes
from tests.errors import raises


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bitsandbytes") / "checkpoint"
    config = preset("tiny")
    tokenizer = InstructionTokenizer.from_corpus(["open the drawer"], vocab_size=400, text_length=config.decoder.text_length)
    save_checkpoint(path, build_policy(config, seed=0), tokenizer, {})
    return path


def test_the_settings_know_every_format() -> None:
    assert ("as-is", *WEIGHT_FORMATS) == TORCH_WEIGHTS
    with raises(ConfigError, "torch_weights", got="'nf5'", expected="one of as-is, nf4, llm-int8 (did you mean 'nf4'..."):
        RuntimeSettings(torch_weights="nf5")
    with raises(ConfigError, "weights", got="'int3'"):
        keep_weights_in(nn.Sequential(), "int3", torch.float32)


def test_without_the_library_the_extra_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with raises(BackendUnavailableError, "bitsandbytes", remedy="Install it: pip install 'rfedge[bnb]'."):
        EdgePolicy.load(checkpoint, backend="torch", settings=RuntimeSettings(torch_weights="nf4"))


@pytest.fixture
def bitsandbytes() -> object:
    return pytest.importorskip("bitsandbytes", reason="the extra rfedge[bnb] is not installed")


@pytest.mark.parametrize(("weights", "most"), [("nf4", 0.4), ("llm-int8", 0.08)])
@pytest.mark.usefixtures("bitsandbytes")
def test_actions_stay_near_those_of_fp32(checkpoint: Path, weights: str, most: float) -> None:
    rng = np.random.default_rng(0)
    with (
        EdgePolicy.load(checkpoint, backend="torch", settings=RuntimeSettings(torch_weights=weights)) as ours,
        EdgePolicy.load(checkpoint, backend="torch") as reference,
    ):
        assert ours.parts.precision == weights
        assert ours.parts.block_precisions["backbone"].startswith(f"{weights} (31 linear layers")
        assert ours.parts.block_precisions["head"] == "fp32"
        states = [ours.initial_state(), reference.initial_state()]
        for _ in range(5):
            frame = Observation(rng.integers(0, 256, (200, 200, 3), np.uint8), rng.integers(0, 256, (84, 84, 3), np.uint8))
            results = [p.infer(frame, "open the drawer", s) for p, s in zip((ours, reference), states, strict=True)]
            states = [result.state for result in results]
            assert 0 < np.abs(results[0].actions - results[1].actions)[:, :6].max() < most


@pytest.mark.usefixtures("bitsandbytes")
def test_weights_take_what_the_format_says() -> None:
    layers = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Sequential(nn.Linear(256, 64, bias=False)))
    assert keep_weights_in(layers, "nf4", torch.float32) == 2
    assert layers[0].weight.numel() == 128 * 256 // 2
    assert layers[0].weight.element_size() == 1
    assert layers[0].bias is not None
    packed = stored_bytes(layers)
    assert (128 * 256 + 256 * 64) / 2 < packed < 0.2 * 4 * (128 * 256 + 256 * 64), "half a byte each, scales and biases"
    assert layers[2][0].bias is None
    try_bitsandbytes()


def test_the_doctor_says_what_is_possible_here() -> None:
    from rfedge.machine.probing import probe
    from rfedge.runtimes.doctor.software import probe_bitsandbytes

    found = probe(probe_bitsandbytes)
    if importlib.util.find_spec("bitsandbytes") is None:
        assert found.reason == "bitsandbytes is not installed"
    else:
        assert found.value
