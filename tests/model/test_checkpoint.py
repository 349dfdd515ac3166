import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rfedge.config import GPTHeadConfig, GPTNeoXConfig, PolicyConfig, preset
from rfedge.errors import ArtifactError
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model import RoboFlamingo, build_policy, load_checkpoint, save_checkpoint
from rfedge.model.checkpoint import TensorSpec, checkpoint_sha256, read_weights, write_checkpoint, write_weights
from tests.errors import raises
from tests.tolerances import assert_same_in_fp32, policy_terms
from tests.whole_windows import forward_window


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
    with raises(ArtifactError, got="an existing path", expected="a free name"):
        save_checkpoint(checkpoint, loaded.policy, loaded.tokenizer, {})
    save_checkpoint(checkpoint, loaded.policy, loaded.tokenizer, {"steps": 8}, overwrite=True)
    assert load_checkpoint(checkpoint).metadata == {"steps": 8}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with raises(ArtifactError, got=f"no {name}", expected="config.json, model.safetensors and tokenizer.json"):
        load_checkpoint(checkpoint)


def test_no_folder_says_so(tmp_path: Path) -> None:
    with raises(ArtifactError, got="no folder"):
        load_checkpoint(tmp_path / "nowhere")


def test_truncated_weights_are_one_clear_error(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with raises(ArtifactError, "checkpoint file model.safetensors"):
        load_checkpoint(checkpoint)


def test_weights_of_another_policy_name_the_first_tensor_that_differs(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    renamed = {("head.extra" if name == "head.pose.0.bias" else name): tensor for name, tensor in weights.items()}
    save_file(renamed, path)
    with raises(ArtifactError, "checkpoint tensor 'head.extra'", got="(48,)", expected="no such tensor"):
        load_checkpoint(checkpoint)


def test_a_wrong_configuration_is_one_clear_error(checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    document = json.loads(path.read_text())
    document["policy"]["vision"]["width"] = "wide"
    path.write_text(json.dumps(document))
    with raises(ArtifactError, "checkpoint file config.json"):
        load_checkpoint(checkpoint)


# ---- shards


@pytest.fixture
def sharded(checkpoint: Path, tmp_path: Path) -> Path:
    loaded = load_checkpoint(checkpoint)
    path = tmp_path / "sharded"
    save_checkpoint(path, loaded.policy, loaded.tokenizer, {"steps": 7}, max_shard_bytes=900_000)
    return path


def test_shards_hold_the_same_policy_as_one_file(checkpoint: Path, sharded: Path) -> None:
    names = sorted(path.name for path in sharded.iterdir())
    index = json.loads((sharded / "model.safetensors.index.json").read_bytes())
    files = sorted(set(index["weight_map"].values()))
    assert names == sorted([*files, "config.json", "model.safetensors.index.json", "tokenizer.json"])
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    whole = load_file(checkpoint / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    assert all((sharded / name).stat().st_size < 920_000 for name in files)
    state = load_checkpoint(sharded).policy.state_dict()
    assert list(state) == list(load_checkpoint(checkpoint).policy.state_dict())
    for name, tensor in whole.items():
        assert torch.equal(state[name], tensor), name


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(3),
        "b": torch.ones(100),
        "c": torch.tensor(True),
        "d": torch.zeros(0, 2, dtype=torch.bfloat16),
    }
    specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    seen: list[int] = []
    write_weights(tmp_path, specs, tensors.__getitem__, max_shard_bytes=50, on_bytes=seen.append)
    assert sorted(seen) == [0, 1, 24, 400]
    assert len(list(tmp_path.glob("model-0000?-of-00003.safetensors"))) == 3
    for name, tensor in read_weights(tmp_path).items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])


def test_what_is_written_is_what_was_announced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a: got torch.float32"):
        write_weights(tmp_path, {"a": TensorSpec(torch.float32, (2,))}, lambda _: torch.zeros(3))


def test_the_sum_of_one_file_is_the_files_and_that_of_shards_covers_all(checkpoint: Path, sharded: Path) -> None:
    assert checkpoint_sha256(checkpoint) == hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    before = checkpoint_sha256(sharded)
    last = sorted(sharded.glob("model-*.safetensors"))[-1]
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(bytes(content))
    assert checkpoint_sha256(sharded) != before


def missing_shard(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()


def truncated_shard(folder: Path) -> None:
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def change_index(folder: Path, name: str, holder: str | None) -> None:
    path = folder / "model.safetensors.index.json"
    document = json.loads(path.read_bytes())
    document["weight_map"].pop(name)
    if holder is not None:
        document["weight_map"][name] = holder
    path.write_text(json.dumps(document))


def wrong_index(folder: Path) -> None:
    change_index(folder, "embedding.weight", "model-00003-of-00003.safetensors")


def incomplete_index(folder: Path) -> None:
    change_index(folder, "head.pose.0.bias", None)


def index_to_elsewhere(folder: Path) -> None:
    change_index(folder, "embedding.weight", "../model.safetensors")


def index_of_text(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "file", "got"),
    [
        (missing_shard, "model-00002-of-00003.safetensors", "no file"),
        (truncated_shard, "model-00002-of-00003.safetensors", "Error while deserializing ..."),
        (wrong_index, "model-00001-of-00003.safetensors", "a tensor 'embedding.weight'"),
        (incomplete_index, "model-00003-of-00003.safetensors", "a tensor 'head.pose.0.bias'"),
        (index_to_elsewhere, "model.safetensors.index.json", "names of files elsewhere or none"),
        (index_of_text, "model.safetensors.index.json", "TypeError..."),
    ],
)
def test_damaged_shards_are_named(damage, file: str, got: str, sharded: Path) -> None:
    assert len(list(sharded.glob("model-*-of-00003.safetensors"))) == 3
    damage(sharded)
    with raises(ArtifactError, f"checkpoint file {file}", got=got):
        load_checkpoint(sharded)


# ---- loading without drawing


def configurations() -> dict[str, PolicyConfig]:
    tiny = preset("tiny")
    shared = tiny.decoder.model_dump(exclude={"kind", "qk_norm", "alibi_bias_max"})
    neox = GPTNeoXConfig(kind="gpt_neox", mlp_width=128, **shared)
    return {
        "tiny": tiny,
        "gpt_neox": tiny.model_copy(update={"decoder": neox}),
        "gpt head": tiny.model_copy(update={"head": GPTHeadConfig(kind="gpt", width=32, layers=1, heads=2)}),
    }


@pytest.mark.parametrize("name", configurations())
def test_a_loaded_policy_computes_what_the_saved_one_did(name: str, tmp_path: Path) -> None:
    config = configurations()[name]
    policy = build_policy(config, seed=5).eval()
    tokenizer = InstructionTokenizer.from_corpus(["open the drawer"], vocab_size=400, text_length=config.decoder.text_length)
    save_checkpoint(tmp_path / "checkpoint", policy, tokenizer, {})
    before = torch.random.get_rng_state()
    loaded = load_checkpoint(tmp_path / "checkpoint").policy
    assert torch.equal(torch.random.get_rng_state(), before)
    buffers = dict(loaded.named_buffers())
    assert buffers.keys() == dict(policy.named_buffers()).keys()
    for key, buffer in policy.named_buffers():
        assert torch.equal(buffers[key], buffer), key
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in loaded.parameters())
    static = torch.randint(0, 256, (2, 200, 200, 3), dtype=torch.uint8)
    gripper = torch.randint(0, 256, (2, 84, 84, 3), dtype=torch.uint8)
    ids, mask = (torch.from_numpy(part)[None] for part in tokenizer.encode("open the drawer"))
    with torch.no_grad():
        ours, theirs = (forward_window(one, static[None], gripper[None], ids, mask) for one in (loaded, policy))
    for left, right in zip(ours, theirs, strict=True):
        assert_same_in_fp32(left, right, policy_terms(config))  # mapped weights lie elsewhere: sums in another order


def test_a_build_after_a_load_has_weights_again(checkpoint: Path) -> None:
    load_checkpoint(checkpoint)
    assert not any(parameter.is_meta for parameter in build_policy(preset("tiny"), seed=0).parameters())


def test_a_loaded_checkpoint_can_be_changed_without_changing_its_file(checkpoint: Path) -> None:
    before = checkpoint_sha256(checkpoint)
    policy = load_checkpoint(checkpoint).policy
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    assert checkpoint_sha256(checkpoint) == before


def test_loading_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    config = preset("playtable-small")
    decoder = config.decoder.model_copy(update={"width": 1024, "layers": 4, "heads": 8})
    config = config.model_copy(update={"decoder": decoder})
    with torch.device("meta"):
        state = RoboFlamingo(config).state_dict()
    specs = {name: TensorSpec(torch.float32, tuple(tensor.shape)) for name, tensor in state.items()}
    tokenizer = InstructionTokenizer.from_corpus(["open"], vocab_size=400, text_length=config.decoder.text_length)

    def ones(name: str) -> torch.Tensor:
        return torch.ones(specs[name].shape)

    write_checkpoint(tmp_path / "checkpoint", config, tokenizer, {}, specs, ones, max_shard_bytes=100_000_000)
    code = (
        "import sys, torch, pathlib; from rfedge.model import load_checkpoint; import rfedge.records.machine as machine\n"
        "torch.ones(2048, 2048).sum(); before = machine.peak_rss_bytes()\n"
        "policy = load_checkpoint(pathlib.Path(sys.argv[1])).policy\n"
        "total = sum(float(p.detach().sum()) for p in policy.parameters()); assert total != 0\n"
        "size = sum(p.nbytes for p in policy.parameters())\n"
        "print((machine.peak_rss_bytes() - before) / size, size)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "checkpoint"], capture_output=True, text=True, check=True
    )
    ratio, size = map(float, result.stdout.split())
    assert size > 3e8
    assert ratio < 1.1
    with safe_open(next((tmp_path / "checkpoint").glob("model-00001-*.safetensors")), "pt") as file:
        assert file.metadata() == {"format": "pt"}
