"""`rfedge import` on whole sets of tiny original files."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rfedge import config as presets
from rfedge.model import RoboFlamingo, load_checkpoint
from rfedge.model.original import load_original
from rfedge.model.original.fixture import open_fixture
from rfedge.model.original.parity import compare
from tests.cli.import_command import one_line, run_import
from tests.model.fake_originals import DECODERS, Originals, write_originals
from tests.tolerances import assert_same_in_fp32, policy_terms

KINDS = tuple(DECODERS)
FOLDER = os.environ.get("RFEDGE_PARITY_FIXTURES")


@torch.no_grad()
def step(policy: RoboFlamingo, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One frame and one instruction through everything."""
    generator = torch.Generator().manual_seed(0)
    static = torch.randint(0, 256, (1, 200, 200, 3), dtype=torch.uint8, generator=generator)
    gripper = torch.randint(0, 256, (1, 84, 84, 3), dtype=torch.uint8, generator=generator)
    feature = policy.backbone(static, gripper, policy.embed_text(ids), mask)
    assert isinstance(feature, torch.Tensor)
    return feature, *policy.head.unroll(feature[:, None])


def test_its_help_shows_every_flag(capsys) -> None:
    assert run_import("--help") == 0
    assert "--roboflamingo" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_an_import_acts_like_the_original(kind: str, originals: dict[str, Originals], tmp_path: Path, capsys) -> None:
    given = originals[kind]
    output = tmp_path / "checkpoint"
    assert run_import(*given.arguments(), "--output", output, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["written"] is True
    assert document["missing"] == document["mismatched"] == document["left_over"] == document["drawn"] == []
    loaded = load_checkpoint(output)
    assert loaded.config == given.config
    expected = RoboFlamingo(given.config).eval()
    report, _ = load_original(expected, given.weights)
    assert report.missing == ()
    state = loaded.policy.state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(state[name], tensor), name
    ids, mask = (torch.from_numpy(part)[None] for part in loaded.tokenizer.encode("open the drawer"))
    for ours, theirs in zip(step(loaded.policy, ids, mask), step(expected, ids, mask), strict=True):
        # mapped weights lie elsewhere: an LSTM sums in another order
        assert_same_in_fp32(ours, theirs, policy_terms(given.config))
    origin = loaded.metadata["import"]
    assert origin["epoch"] == 4
    names = {source["role"]: source["file"] for source in origin["sources"]}
    assert names["roboflamingo"] == given.roboflamingo.name
    assert all(len(source["sha256"]) == 64 for source in origin["sources"])
    assert not list(tmp_path.glob(".*"))


def test_the_blocks_of_the_roboflamingo_file_are_enough_for_mpt_1b(originals, tmp_path: Path, capsys) -> None:
    given = originals["mosaic_gpt"]
    folder = tmp_path / "settings"
    shutil.copytree(given.language_model, folder, ignore=shutil.ignore_patterns("pytorch_model.bin"))
    rest = ["--roboflamingo", given.roboflamingo, "--clip", given.clip, "--lm", folder]
    assert run_import(*rest, "--output", tmp_path / "checkpoint") == 0
    assert "assumed: the final norm is in no file: filled with ones" in capsys.readouterr().out
    state = load_checkpoint(tmp_path / "checkpoint").policy.state_dict()
    assert torch.equal(state["backbone.decoder.ln_f.weight"], torch.ones(32))
    expected = RoboFlamingo(given.config)
    load_original(expected, given.weights)
    for name, tensor in expected.state_dict().items():
        assert name == "backbone.decoder.ln_f.weight" or torch.equal(state[name], tensor), name


@pytest.mark.parametrize(("kind", "repository"), [("gpt_neox", "togethercomputer/RedPajama-INCITE"), ("mpt", "mpt-7b")])
def test_a_final_norm_that_runs_is_asked_for(kind: str, repository: str, originals, tmp_path: Path, capsys) -> None:
    given = originals[kind]
    folder = tmp_path / "settings"
    shutil.copytree(given.language_model, folder, ignore=shutil.ignore_patterns("*.bin", "*.safetensors*"))
    arguments = ["--roboflamingo", given.roboflamingo, "--clip", given.clip, "--lm", folder]
    assert run_import(*arguments, "--output", tmp_path / "checkpoint") == 2
    line = one_line(capsys)
    assert "in no file: backbone.decoder.ln_f.weight" in line
    assert "Give the final norm of the language model: --lm" in line
    assert repository in line


def test_only_the_shard_with_what_is_missing_is_opened(originals, tmp_path: Path) -> None:
    given = originals["mpt"]
    folder = tmp_path / "lm"
    shutil.copytree(given.language_model, folder)
    weight_map = json.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"]
    for path in folder.glob("model-*.safetensors"):
        if path.name != weight_map["transformer.norm_f.weight"]:
            path.write_bytes(b"")  # would be an error if it were opened
    arguments = ["--roboflamingo", given.roboflamingo, "--clip", given.clip, "--lm", folder]
    assert run_import(*arguments, "--output", tmp_path / "checkpoint") == 0


def test_without_roboflamingo_the_head_is_drawn(originals, tmp_path: Path, capsys) -> None:
    arguments = [*originals["gpt_neox"].arguments("--roboflamingo"), "--chunk-size", 2, "--seed", 7]
    assert run_import(*arguments, "--output", tmp_path / "checkpoint", "--dry-run", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["drawn"]
    assert all(name.startswith("head.") for name in document["drawn"])
    assert "sampled from seed 7: head" in document["assumed"]
    assert document["policy"]["chunk_size"] == 2
    head = document["policy"]["head"]
    assert (head["kind"], head["hidden_size"], head["layers"]) == ("lstm", 1024, 4)


def test_without_openflamingo_nothing_is_pre_trained_on_images(originals, tmp_path: Path, capsys) -> None:
    given = originals["llama"]
    assert run_import(*given.arguments("--roboflamingo", "--openflamingo"), "--output", tmp_path / "checkpoint") == 0
    printed = capsys.readouterr().out
    assert "no vision-language pre-training; sampled from seed 0: resampler, cross-attention, head" in printed
    assert "3 rows of new tokens are sampled" in printed
    loaded = load_checkpoint(tmp_path / "checkpoint")
    assert loaded.config.resampler.latents == 64
    assert loaded.config.decoder.cross_attention_every == 4
    fused = loaded.policy.backbone.decoder.layers[3].cross_attention
    assert fused.attention_gate.item() == fused.feed_forward_gate.item() == 0.0
    assert fused.attention.to_q.weight.std() > 0.01
    assert loaded.metadata["import"]["drawn"] == ["cross-attention", "head", "resampler"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_in_16_bits_computes_in_32(dtype: torch.dtype, originals, tmp_path: Path) -> None:
    given = originals["mosaic_gpt"]
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    assert run_import(*given.arguments(), "--dtype", name, "--output", tmp_path / "checkpoint") == 0
    stored = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    loaded = load_checkpoint(tmp_path / "checkpoint")
    assert {parameter.dtype for parameter in loaded.policy.parameters()} == {torch.float32}
    expected = RoboFlamingo(given.config).eval()
    load_original(expected, given.weights)
    for key, tensor in expected.state_dict().items():
        assert torch.equal(loaded.policy.state_dict()[key], tensor.to(dtype).float()), key


def test_chunks_and_two_ways_are_read_off_the_head(tmp_path: Path, capsys) -> None:
    given = write_originals(tmp_path / "files", "gpt_neox", chunk_size=3, two_way=True)
    assert run_import(*given.arguments(), "--output", tmp_path / "checkpoint") == 0
    assert "'post' says post, the import two_way" in capsys.readouterr().err
    config = load_checkpoint(tmp_path / "checkpoint").config
    assert (config.chunk_size, config.fusion) == (3, "two_way")
    assert run_import(*given.arguments(), "--fusion", "post", "--output", tmp_path / "other") == 2
    assert "--fusion: got post, expected two_way" in one_line(capsys)
    assert run_import(*given.arguments(), "--chunk-size", 1, "--output", tmp_path / "other") == 2
    assert "--chunk-size: got 1, expected 3" in one_line(capsys)


def test_the_output_projection_is_kept_when_asked_for(originals, tmp_path: Path, capsys) -> None:
    given = originals["gpt_neox"]
    assert run_import(*given.arguments(), "--keep-output-projection", "--output", tmp_path / "checkpoint") == 0
    policy = load_checkpoint(tmp_path / "checkpoint").policy
    theirs = torch.load(given.openflamingo, weights_only=True)["lang_encoder.embed_out.weight"]
    assert torch.equal(policy.state_dict()["output_projection.weight"], theirs)
    capsys.readouterr()
    arguments = [*originals["mpt"].arguments(), "--keep-output-projection", "--output", tmp_path / "other"]
    assert run_import(*arguments) == 2
    assert "--keep-output-projection: got a language model of kind mpt" in one_line(capsys)


def test_a_dry_run_checks_and_writes_nothing(originals, tmp_path: Path, capsys) -> None:
    assert run_import(*originals["mosaic_gpt"].arguments(), "--output", tmp_path / "checkpoint", "--dry-run", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["written"] is False
    assert document["num_tensors"] == len(RoboFlamingo(originals["mosaic_gpt"].config).state_dict())
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_the_file_warns_and_decides_nothing(originals, tmp_path: Path, capsys) -> None:
    given = originals["mosaic_gpt"]
    named = tmp_path / "checkpoint_gripper_pre_hist_1_sep_aug_10_4_ws_16_mpt_dolly_3b_2_fur_step_3.pth"
    named.symlink_to(given.roboflamingo)
    arguments = [*given.arguments("--roboflamingo"), "--roboflamingo", named, "--output", tmp_path / "checkpoint"]
    assert run_import(*arguments) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    for part in ("'ws_16' says 16, the import 12", "'pre' says pre, the import post", "'2_fur_step' says 2, the import 1"):
        assert part in warnings[0]
    assert load_checkpoint(tmp_path / "checkpoint").config.window == 12


def test_an_existing_checkpoint_is_replaced_only_when_asked_to(originals, tmp_path: Path, capsys) -> None:
    arguments = [*originals["mosaic_gpt"].arguments(), "--output", tmp_path / "checkpoint"]
    assert run_import(*arguments) == 0
    capsys.readouterr()
    assert run_import(*arguments) == 2
    assert "got an existing path, expected a free name" in one_line(capsys)
    assert run_import(*arguments, "--overwrite") == 0


def test_a_repository_is_read_from_the_cache(originals, tmp_path: Path, monkeypatch, capsys) -> None:
    from huggingface_hub import constants

    given = originals["mosaic_gpt"]
    cache = tmp_path / "hub"
    for repository, files in {
        "roboflamingo/RoboFlamingo": [given.roboflamingo, given.clip],
        "org/lm": list(given.language_model.iterdir()),
    }.items():
        folder = cache / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (folder / "blobs").mkdir()
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("a" * 40)
        for index, path in enumerate(files):
            shutil.copy(path, folder / "blobs" / str(index))
            (snapshot / path.name).symlink_to(Path("../../blobs") / str(index))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    arguments = ["--clip", given.clip, "--openflamingo", given.openflamingo]
    ids = ["--roboflamingo", "roboflamingo/RoboFlamingo", "--lm", f"org/lm@{'a' * 40}"]
    assert run_import(*arguments, *ids, "--output", tmp_path / "checkpoint") == 0
    sources = load_checkpoint(tmp_path / "checkpoint").metadata["import"]["sources"]
    (source,) = [source for source in sources if source["role"] == "roboflamingo"]
    assert (source["repository"], source["revision"]) == ("roboflamingo/RoboFlamingo", "main")
    # Nothing runs MPT-1B's final norm, so of a repository its language model's weights are not even asked for.
    assert "pytorch_model.bin" not in {source["file"] for source in sources}
    capsys.readouterr()
    assert run_import(*arguments, "--roboflamingo", cache / "models--roboflamingo--RoboFlamingo", "--lm", "org/none") == 2
    captured = capsys.readouterr()
    assert "Missing option" in captured.err
    assert run_import(*arguments, "--lm", "org/none", "--output", tmp_path / "other") == 2
    assert "Hugging Face repository org/none: got no connection" in one_line(capsys)


def test_a_preset_names_the_size_that_differs(originals, tmp_path: Path, capsys) -> None:
    assert run_import(*originals["mosaic_gpt"].arguments(), "--config", "M-3B", "--output", tmp_path / "checkpoint") == 2
    assert "--config M-3B: vision." in one_line(capsys)
    assert run_import(*originals["mosaic_gpt"].arguments(), "--config", "G-4B", "--output", tmp_path / "checkpoint") == 2
    assert "--config G-4B: got a language model of kind mosaic_gpt, expected gpt_neox" in one_line(capsys)


@pytest.mark.parametrize(("kind", "asked"), [("mosaic_gpt", set()), ("mpt", {"norm"}), ("gpt_neox", {"pytorch_model.bin"})])
def test_of_a_repository_only_what_is_needed_is_fetched(
    kind: str, asked: set[str], originals, tmp_path: Path, monkeypatch
) -> None:
    """The hub is played by a folder: it lists its files and hands out what it is asked for."""
    import huggingface_hub

    given, fetched = originals[kind], set()
    (tmp_path / "snapshot").mkdir()

    def list_files(_self: object, repository: str, *, revision: str) -> list[str]:
        assert (repository, revision) == ("org/lm", "v1")
        return [path.name for path in given.language_model.iterdir()] + ["flax_model.msgpack", "onnx/config.json"]

    def download(repository: str, *, revision: str, allow_patterns: list[str]) -> str:
        assert (repository, revision) == ("org/lm", "v1")
        for name in allow_patterns:
            shutil.copy(given.language_model / name, tmp_path / "snapshot")
        fetched.update(allow_patterns)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    arguments = ["--roboflamingo", given.roboflamingo, "--clip", given.clip, "--lm", "org/lm@v1"]
    assert run_import(*arguments, "--output", tmp_path / "checkpoint") == 0
    settings = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    if asked == {"norm"}:
        index = "model.safetensors.index.json"
        weight_map = json.loads((given.language_model / index).read_bytes())["weight_map"]
        asked = {index, weight_map["transformer.norm_f.weight"]}
    assert fetched == settings | asked


@pytest.mark.skipif(FOLDER is None, reason="RFEDGE_PARITY_FIXTURES names no folder of fixtures")
@pytest.mark.parametrize("name", ["rf_mosaicgpt_post", "rf_neox_x2_post"])
def test_what_the_original_saved_is_imported(name: str, tmp_path: Path) -> None:
    fixture = open_fixture(Path(FOLDER or "") / name)
    files, config = fixture.weights, fixture.policy
    arguments = ["--roboflamingo", files.roboflamingo, "--openflamingo", files.openflamingo, "--clip", files.vision]
    sizes = ["--vision-heads", config.vision.heads, "--window", config.window, "--text-length", config.decoder.text_length]
    assert run_import(*arguments, "--lm", files.language_model, *sizes, "--output", tmp_path / "checkpoint") == 0
    loaded = load_checkpoint(tmp_path / "checkpoint")
    assert loaded.config == config.model_copy(update={"name": "imported"})
    ids = torch.from_numpy(fixture.arrays["step/in/lang_x"])[0]
    assert loaded.tokenizer.encode(fixture.document["texts"][0])[0].tolist()[: len(ids)] == ids.tolist()
    expected = RoboFlamingo(config)
    _, projection = load_original(expected, files)
    stages, _ = compare(fixture, loaded.policy, projection)
    assert [stage for stage in stages if not stage.passed] == []


def test_a_preset_and_a_tokenizer_stand_in_for_the_language_model(originals, tmp_path: Path, monkeypatch, capsys) -> None:
    given = originals["mosaic_gpt"]
    base = given.config.model_copy(update={"name": "small-original", "window": 7})
    monkeypatch.setitem(presets._PRESETS, "small-original", base.model_dump())
    arguments = ["--roboflamingo", given.roboflamingo, "--clip", given.clip, "--tokenizer", given.language_model]
    assert run_import(*arguments, "--config", "small-original", "--output", tmp_path / "checkpoint") == 0
    assert "'ws_12' says 12, the import 7" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "checkpoint").config == base
    assert run_import(*arguments, "--output", tmp_path / "other") == 2
    assert "import: got neither --lm nor --config" in one_line(capsys)
    assert run_import(*arguments[:4], "--config", "small-original", "--output", tmp_path / "other") == 2
    assert "import: got no tokenizer" in one_line(capsys)


def test_a_clip_of_another_activation_is_warned_of(originals, tmp_path: Path, capsys) -> None:
    given = originals["mosaic_gpt"]
    folder = tmp_path / "clip"
    folder.mkdir()
    shutil.copy(given.clip, folder)
    arguments = [*given.arguments("--clip"), "--clip", folder, "--output", tmp_path / "checkpoint", "--dry-run"]
    for quick, warned in ((True, False), (False, True)):
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 64, "quick_gelu": quick}}))
        assert run_import(*arguments) == 0
        assert ("trained with GELU, the policy computes QuickGELU" in capsys.readouterr().err) is warned


def test_a_full_disk_is_seen_before_anything_is_written(originals, tmp_path: Path, monkeypatch, capsys) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert run_import(*originals["mosaic_gpt"].arguments(), "--output", tmp_path / "a" / "b" / "checkpoint") == 2
    assert "MB free, expected about " in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_all_missing_names_are_in_the_document(originals, tmp_path: Path, capsys) -> None:
    arguments = originals["gpt_neox"].arguments("--clip", "--openflamingo", "--roboflamingo")
    assert run_import(*arguments, "--output", tmp_path / "checkpoint") == 2
    assert "Pass --clip openai/clip-vit-large-patch14" in one_line(capsys)
    path = tmp_path / "state.pth"
    state = torch.load(originals["gpt_neox"].roboflamingo, weights_only=True)["model_state_dict"]
    torch.save({name: tensor for name, tensor in state.items() if "old_decoder_blocks.2" not in name}, path)
    folder = tmp_path / "settings"
    shutil.copytree(originals["gpt_neox"].language_model, folder, ignore=shutil.ignore_patterns("*.bin"))
    arguments = ["--roboflamingo", path, "--clip", originals["gpt_neox"].clip, "--lm", folder]
    assert run_import(*arguments, "--output", tmp_path / "checkpoint", "--json") == 2
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert len(document["missing"]) == 14
    assert "14 tensors in no file: " in captured.err
    assert "and 4 more" in captured.err
