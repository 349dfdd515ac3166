"""The import's parts: names and sizes of the released files, CLIP's three ways of naming, sources, tokenizers, draws."""

import functools
import gzip
import json
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import save_file

from rfedge.config import LSTMHeadConfig, PolicyConfig, preset
from rfedge.errors import ArtifactError, BackendUnavailableError
from rfedge.language.tokenizer import InstructionTokenizer
from rfedge.model import RoboFlamingo
from rfedge.model.original.import_plan import SeededInit, disagreements, part_of
from rfedge.model.original.import_sizes import find_sizes, policy_config
from rfedge.model.original.language_models import flamingo_tokenizer
from rfedge.model.original.names import OUTPUT_PROJECTION
from rfedge.model.original.plan import PlannedFile, plan_weights
from rfedge.model.original.sources import open_source
from rfedge.model.original.tensor_files import TensorFile, open_tensor_file
from rfedge.records.import_options import ImportOptions
from tests.errors import raises
from tests.model import fake_originals
from tests.model.original_layouts import clip_shapes, language_model_shapes, openflamingo_shapes, roboflamingo_shapes
from tests.model.original_models import FIXTURES

FAMILIES = {"mpt1b": "M-3B", "rpj3b": "G-4B", "llama7b": "L-9B", "mpt7b": "M-9B"}
Shapes = dict[str, tuple[int, ...]]


@functools.cache
def released() -> dict[str, Shapes]:
    """Keys and shapes of every released file."""
    document = json.loads(gzip.decompress((FIXTURES / "real_keys.json.gz").read_bytes()))
    return {name: {key: tuple(shape) for key, shape in keys.items()} for name, keys in document.items()}


def planned(role: str, shapes: Shapes) -> PlannedFile:
    return PlannedFile(role, TensorFile(Path(f"{role}.pth"), shapes))  # type: ignore[arg-type]


def state_shapes(config: PolicyConfig) -> Shapes:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in RoboFlamingo(config).state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stand_ins_have_the_released_layouts(family: str) -> None:
    config = preset(FAMILIES[family])
    assert roboflamingo_shapes(config) == released()[f"roboflamingo_{family}"]
    keys = dict(released()[f"openflamingo_{family}"])
    keys.pop("lang_encoder.lm_head.weight", None)  # of the class that listed MPT-7B's keys; the released file has none
    assert openflamingo_shapes(config) == keys


@pytest.mark.parametrize("family", FAMILIES)
def test_the_released_shapes_are_those_of_the_preset(family: str) -> None:
    base = preset(FAMILIES[family])
    kind = base.decoder.kind
    files = {
        "clip": planned("clip", clip_shapes(base.vision)),
        "openflamingo": planned("openflamingo", released()[f"openflamingo_{family}"]),
        "roboflamingo": planned("roboflamingo", released()[f"roboflamingo_{family}"]),
    }
    unknown = base.decoder.model_copy(
        update={"vocab_size": 1, "text_length": 1, "cross_attention_every": 1, "feature": "final_norm"}
    )
    found = find_sizes(files, unknown, None)
    assert policy_config(found, unknown, None, ImportOptions(), base.decoder.vocab_size) == base
    assert policy_config(found, unknown, preset(base.name), ImportOptions(), base.decoder.vocab_size) == base

    shapes = state_shapes(base)
    plan = plan_weights(list(files.values()), shapes, kind)
    assert plan.left_over == []
    assert plan.mismatched == []
    assert {name.rsplit(".", 1)[0] for name in plan.missing} == {"backbone.decoder.ln_f"}
    # With rows to spare, as MPT and RedPajama have them, or too few, as LLaMA.
    language_model = planned("language model", language_model_shapes(base.decoder, 32000 if kind == "llama" else 50432))
    whole = plan_weights([language_model, *files.values()], shapes | {OUTPUT_PROJECTION: shapes["embedding.weight"]}, kind)
    assert whole.left_over == []
    assert whole.mismatched == []
    assert [name for name in whole.missing if name != OUTPUT_PROJECTION or kind in ("gpt_neox", "llama")] == []
    alone = plan_weights([language_model], shapes, kind)
    assert alone.new_rows("embedding.weight") == (3 if kind == "llama" else 0)


@pytest.mark.parametrize(("other", "text"), [("rpj3b", "width 2560"), ("mpt7b", "of width 4096 (as L-9B or M-9B)")])
def test_a_file_for_another_language_model_is_named(other: str, text: str) -> None:
    base = preset("M-3B")
    shapes = {
        key.replace("gpt_neox.layers", "transformer.blocks").replace("gpt_neox.embed_in", "transformer.wte"): shape
        for key, shape in released()[f"openflamingo_{other}"].items()
        if "embed_out" not in key
    }
    files = {"clip": planned("clip", clip_shapes(base.vision)), "openflamingo": planned("openflamingo", shapes)}
    with raises(ArtifactError, got=f"...{text}..."):
        find_sizes(files, base.decoder, None)


# ---- CLIP


def as_transformers(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Rename open_clip's visual tower to CLIPModel's, or, without a prefix, CLIPVisionModel's of transformers 5."""
    renamed = {f"{prefix}embeddings.position_ids": torch.arange(5)[None]}
    for name, tensor in tensors.items():
        name = name.removeprefix("visual.")
        if name.startswith("transformer.resblocks."):
            index, rest = name.removeprefix("transformer.resblocks.").split(".", 1)
            layer = f"{prefix}encoder.layers.{index}."
            if rest.startswith("attn.in_proj_"):
                for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                    renamed[f"{layer}self_attn.{letter}_proj.{rest.removeprefix('attn.in_proj_')}"] = part.clone()
                continue
            for old, new in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
                ("ln_", "layer_norm"),
            ):
                rest = rest.replace(old, new)
            renamed[layer + rest] = tensor
        elif name == "proj":
            renamed["visual_projection.weight"] = tensor.T.contiguous()
        else:
            for old, new in (
                ("class_embedding", "embeddings.class_embedding"),
                ("positional_embedding", "embeddings.position_embedding.weight"),
                ("conv1", "embeddings.patch_embedding"),
                ("ln_pre", "pre_layrnorm"),
                ("ln_post", "post_layernorm"),
            ):
                name = name.replace(old, new)
            renamed[prefix + name] = tensor
    return renamed


def as_timm(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {"head.weight": torch.zeros(3, 128)}
    for name, tensor in tensors.items():
        for old, new in (
            ("visual.", ""),
            ("transformer.resblocks", "blocks"),
            ("attn.in_proj_", "attn.qkv."),
            ("attn.out_proj", "attn.proj"),
            ("mlp.c_fc", "mlp.fc1"),
            ("mlp.c_proj", "mlp.fc2"),
            ("ln_pre", "norm_pre"),
            ("ln_post", "norm"),
            (".ln_", ".norm"),
            ("conv1", "patch_embed.proj"),
            ("class_embedding", "cls_token"),
            ("positional_embedding", "pos_embed"),
        ):
            name = name.replace(old, new)
        renamed[name] = tensor[None, None] if name == "cls_token" else tensor[None] if name == "pos_embed" else tensor
    renamed.pop("proj")
    return renamed


def test_every_way_of_naming_clip_gives_the_same_tensors(tmp_path: Path) -> None:
    vision = preset("tiny").vision.model_copy(update={"width": 128})
    whole = fake_originals.random_tensors(clip_shapes(vision), 5)
    visual = {name: tensor for name, tensor in whole.items() if name.startswith("visual.")}
    text = {"text_model.final_layer_norm.weight": torch.ones(4), "logit_scale": torch.ones(())}
    ways = {
        "open_clip": whole,
        "visual": visual,
        "openflamingo": {name.removeprefix("visual."): tensor for name, tensor in visual.items()},
        "transformers": as_transformers(visual, "vision_model.") | text,
        "transformers5": as_transformers(visual, ""),
        "timm": as_timm(visual),
    }
    config = preset("tiny").model_copy(update={"vision": vision})
    shapes = {name: shape for name, shape in state_shapes(config).items() if name.startswith("backbone.vision.")}
    plans = {}
    for way, tensors in ways.items():
        path = tmp_path / f"{way}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        file = PlannedFile("clip", open_tensor_file(path))
        assert find_sizes({"clip": file}, config.decoder, None).vision == vision, way
        plan = plans[way] = plan_weights([file], shapes, "mosaic_gpt")
        assert (plan.missing, plan.mismatched, plan.left_over) == ([], [], []), way
    for name in shapes:
        expected = plans["open_clip"].read(name)
        for way, plan in plans.items():
            assert torch.equal(plan.read(name), expected), (way, name)


def test_two_thirds_of_a_projection_are_none() -> None:
    vision = preset("tiny").vision
    whole = {name: torch.zeros(shape) for name, shape in clip_shapes(vision).items() if name.startswith("visual.")}
    names = as_transformers(whole, "vision_model.")
    names.pop("vision_model.encoder.layers.1.self_attn.k_proj.bias")
    file = planned("clip", {name: tuple(tensor.shape) for name, tensor in names.items()})
    shapes = {name: shape for name, shape in state_shapes(preset("tiny")).items() if name.startswith("backbone.vision.")}
    assert plan_weights([file], shapes, "mosaic_gpt").missing == ["backbone.vision.blocks.1.qkv.bias"]


# ---- sources


def test_a_folder_of_the_cache_stands_for_its_snapshot(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--name"
    for commit in ("old", "new"):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / f"{commit}.pth").write_bytes(b"")
    with raises(ArtifactError, got="a cache folder without a snapshot"):
        open_source(str(folder), what="file")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("new\n")
    assert open_source(str(folder), what="file").names == ("new.pth",)
    assert open_source(str(folder / "snapshots" / "old"), what="file").names == ("old.pth",)


def test_one_of_several_files_is_asked_for_by_name(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"")
    with raises(ArtifactError, got="2 files (a.pth, b.pth)", expected="one", remedy="Give the file itself."):
        open_source(str(tmp_path), what="RoboFlamingo").choose(["*.pth"], what="RoboFlamingo")


@pytest.mark.parametrize("given", ["runs/epoch.pth", "./org/name", "nowhere", "a/b/c@d@e"])
def test_a_path_that_is_not_there_is_no_repository(given: str) -> None:
    with raises(ArtifactError, got="no such file", expected="a file, a folder or a Hugging Face id..."):
        open_source(given, what="CLIP")


def test_without_the_library_ids_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with raises(BackendUnavailableError, remedy="Install it: pip install huggingface_hub; or give a file or folder."):
        open_source("org/name", what="CLIP")


# ---- tokenizers


def test_the_tokens_of_openflamingo_follow_those_of_the_language_model(tmp_path: Path) -> None:
    count = fake_originals.write_neox_tokenizer(tmp_path)
    tokenizer = flamingo_tokenizer(tmp_path.iterdir(), 16)
    tokenizer.save(tmp_path / "saved.json")
    loaded = InstructionTokenizer.load(tmp_path / "saved.json", 16)
    assert loaded.tokens == tokenizer.tokens == ("<|endoftext|>", "", "<PAD>")
    ids, mask = loaded.encode("open the drawer")
    assert ids[mask][0] == count + 1
    assert list(ids[mask][-2:]) == [count, 0]  # <|endofchunk|>, then GPT-NeoX's own end
    assert set(ids[~mask].tolist()) == {count + 2}
    assert loaded.vocab_size == count + 3


def test_llama_starts_and_ends_with_its_own_tokens(tmp_path: Path) -> None:
    count = fake_originals.write_llama_tokenizer(tmp_path)
    tokenizer = flamingo_tokenizer(tmp_path.iterdir(), 16)
    tokenizer.save(tmp_path / "tokenizer.json")
    for same in (InstructionTokenizer.load(tmp_path / "tokenizer.json", 16), flamingo_tokenizer(tmp_path.iterdir(), 16)):
        assert same.tokens == ("</s>", "<s>", "<PAD>")
        ids, mask = same.encode("open the drawer")
        assert list(ids[mask][:2]) == [1, count + 1]
        assert list(ids[mask][-2:]) == [count, 2]
        assert same.pad_id == count + 2
        assert same.vocab_size == count + 3
    # What stands in the file is also what the library itself does with a text.
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert backend.encode("open the drawer").ids == ids[mask].tolist()


# ---- draws, and names of files


def test_a_part_is_drawn_alike_whichever_others_are() -> None:
    config = preset("tiny")
    state = RoboFlamingo(config).state_dict()
    names = [name for name in state if part_of(name) in ("resampler", "cross-attention", "head")]
    forwards, backwards, other = SeededInit(config, 3), SeededInit(config, 3), SeededInit(config, 4)
    before = torch.random.get_rng_state()
    values = {name: forwards.tensor(name) for name in names}
    for name in reversed(names):
        assert torch.equal(backwards.tensor(name), values[name]), name
        assert values[name].shape == state[name].shape
    changed = {part_of(name) for name in names if not torch.equal(other.tensor(name), values[name])}
    assert changed == {"resampler", "cross-attention", "head"}
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(ValueError, match="not of a part that can be initialised"):
        forwards.tensor("embedding.weight")


def test_the_name_of_a_released_file_agrees_with_its_import() -> None:
    name = "checkpoint_gripper_post_hist_1_aug_10_4_traj_cons_ws_12_mpt_dolly_3b_4.pth"
    assert disagreements(name, preset("M-3B-IFT")) == []
    assert disagreements(name, preset("M-3B")) == ["'mpt_dolly_3b' says M-3B-IFT, the import M-3B"]
    config = preset("G-4B").model_copy(update={"chunk_size": 3, "head": LSTMHeadConfig(hidden_size=1024)})
    assert disagreements("checkpoint_gripper_post_hist_1_sep_ws_12_mpt_base_4b_3_fur_step_2.pth", config) == [
        "'sep' says a resampler for each camera, the import one for both"
    ]
