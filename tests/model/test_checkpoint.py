import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rfedge.config import preset
from rfedge.errors import ArtifactError
from rfedge.model import build_policy, load_checkpoint, save_checkpoint
from rfedge.tokenizer import InstructionTokenizer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = preset("tiny")
    tokenizer = InstructionTokenizer.from_corpus(["open the drawer"], vocab_size=400, text_length=config.decoder.text_length)
    path = tmp_path / "checkpoint"
    save_checkpoint(path, build_policy(config, seed=3), tokenizer, {"steps": 7})
    return path


def test_a_checkpoint_is_read_back_bit_for_bit(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    expected = build_policy(preset("tiny"), seed=3).state_dict()
    assert loaded.metadata == {"steps": 7}
    assert loaded.config == preset("tiny")
    assert not loaded.policy.training
    for name, tensor in loaded.policy.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_an_existing_checkpoint_is_not_replaced_unasked(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    with pytest.raises(ArtifactError, match="got an existing path, expected a free name"):
        save_checkpoint(checkpoint, loaded.policy, loaded.tokenizer, {})
    save_checkpoint(checkpoint, loaded.policy, loaded.tokenizer, {"steps": 8}, overwrite=True)
    assert load_checkpoint(checkpoint).metadata == {"steps": 8}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(
        ArtifactError, match=re.escape(f"got no {name}, expected config.json, model.safetensors and tokenizer.json")
    ):
        load_checkpoint(checkpoint)


def test_no_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="got no folder"):
        load_checkpoint(tmp_path / "nowhere")


def test_truncated_weights_are_one_clear_error(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="checkpoint file model.safetensors: got"):
        load_checkpoint(checkpoint)


def test_weights_of_another_policy_name_the_first_tensor_that_differs(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    renamed = {("head.extra" if name == "head.pose.0.bias" else name): tensor for name, tensor in weights.items()}
    save_file(renamed, path)
    with pytest.raises(
        ArtifactError, match=re.escape("checkpoint tensor 'head.extra': got (48,), expected no such tensor.")
    ):
        load_checkpoint(checkpoint)


def test_a_wrong_configuration_is_one_clear_error(checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    document = json.loads(path.read_text())
    document["policy"]["vision"]["width"] = "wide"
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="checkpoint file config.json: got"):
        load_checkpoint(checkpoint)
