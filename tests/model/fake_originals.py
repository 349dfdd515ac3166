"""Whole sets of original files in the released layouts, with tiny random weights."""

import json
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from rfedge.config import GPTNeoXConfig, LlamaConfig, LSTMHeadConfig, MPTConfig, PolicyConfig, ResamplerConfig, VisionConfig
from rfedge.model.original import OriginalWeights
from tests.model.original_layouts import (
    Shapes,
    clip_shapes,
    language_model_config,
    language_model_shapes,
    openflamingo_shapes,
    roboflamingo_shapes,
)

TEXTS = ("open the drawer", "push the sliding door to the left side", "lift the red block from the table")
TEXT_LENGTH = 32
SHARED = {
    "width": 32,
    "layers": 4,
    "heads": 2,
    "text_length": TEXT_LENGTH,
    "cross_attention_heads": 2,
    "vocab_size": 0,  # the tokenizer's, filled in below
}
DECODERS = {
    "mosaic_gpt": MPTConfig(**SHARED, feature="last_block_input"),
    "gpt_neox": GPTNeoXConfig(**SHARED, kind="gpt_neox", mlp_width=64, cross_attention_every=2),
    "llama": LlamaConfig(
        **SHARED, kind="llama", mlp_width=48, key_value_heads=2, cross_attention_every=4, tokens_before_image=1
    ),
    "mpt": MPTConfig(**SHARED, kind="mpt", qk_norm=False, cross_attention_every=4),
}


@dataclass(frozen=True)
class Originals:
    """Paths of one set, and what our policy of it must be."""

    config: PolicyConfig
    clip: Path
    language_model: Path
    openflamingo: Path
    roboflamingo: Path

    @property
    def weights(self) -> OriginalWeights:
        return OriginalWeights(self.language_model, self.clip, self.openflamingo, self.roboflamingo)

    def arguments(self, *without: str) -> list[str]:
        """Return the flags of `rfedge import`."""
        flags = {
            "--roboflamingo": self.roboflamingo,
            "--openflamingo": self.openflamingo,
            "--clip": self.clip,
            "--lm": self.language_model,
        }
        return [str(part) for flag, path in flags.items() if flag not in without for part in (flag, path)]


def random_tensors(shapes: Shapes, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Draw tensors; the two paths of a cross-attention are one tensor, as in the original's files."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        if ".gated_cross_attn_layers." in name:
            index, rest = name.split(".gated_cross_attn_layers.")[1].split(".", 1)
            (first,) = [key for key in tensors if key.endswith(f".{index}.gated_cross_attn_layer.{rest}")]
            tensors[name] = tensors[first]
            continue
        values = torch.randn(shape, generator=generator) * 0.2
        norm = len(shape) == 1 and name.endswith("weight")
        tensors[name] = (values + 1.0 if norm else values).to(dtype)
    return tensors


def write_originals(folder: Path, kind: str, *, chunk_size: int = 1, two_way: bool = False, shards: int = 1) -> Originals:
    """Write CLIP, a language model's folder, OpenFlamingo's and RoboFlamingo's file around a decoder of `kind`."""
    folder.mkdir(parents=True, exist_ok=True)
    language_model = folder / "lm"
    language_model.mkdir()
    num_tokens = (write_llama_tokenizer if kind == "llama" else write_neox_tokenizer)(language_model)
    decoder = DECODERS[kind].model_copy(update={"vocab_size": num_tokens + 3})
    config = PolicyConfig(
        name="imported",
        vision=VisionConfig(image_size=28, patch_size=14, width=128, layers=2, heads=2),
        resampler=ResamplerConfig(layers=2, latents=4, heads=2),
        decoder=decoder,
        head=LSTMHeadConfig(hidden_size=16, layers=2, mlp_sizes=(16, 8)),
        fusion="two_way" if two_way else "post",
        chunk_size=chunk_size,
    )
    rows = num_tokens if kind == "llama" else num_tokens + 11  # LLaMA's has no spare rows, the others' are padded
    (language_model / "config.json").write_text(json.dumps(language_model_config(decoder, rows)))
    # As released: MPT-1B in float32, RedPajama and LLaMA in float16, MPT-7B in bfloat16.
    dtype = {"mosaic_gpt": torch.float32, "mpt": torch.bfloat16}.get(kind, torch.float16)
    write_language_model(language_model, random_tensors(language_model_shapes(decoder, rows), 1, dtype), shards=shards)

    clip = folder / "open_clip_pytorch_model.bin"
    torch.save(random_tensors(clip_shapes(config.vision), 2), clip)
    openflamingo = folder / "checkpoint.pt"
    torch.save(random_tensors(openflamingo_shapes(config), 3), openflamingo)
    roboflamingo = folder / "checkpoint_gripper_post_hist_1_aug_10_4_traj_cons_ws_12_4.pth"
    state = random_tensors(roboflamingo_shapes(config), 4)
    moments = {index: {"step": torch.tensor(9.0), "exp_avg": tensor.clone()} for index, tensor in enumerate(state.values())}
    document = {
        "epoch": 4,
        "model_state_dict": state,
        "optimizer_state_dict": {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]},
        "lr_scheduler_state_dict": {"last_epoch": 5},
    }
    torch.save(document, roboflamingo)
    return Originals(config, clip, language_model, openflamingo, roboflamingo)


def write_language_model(folder: Path, tensors: dict[str, torch.Tensor], *, shards: int) -> None:
    """Write pytorch_model.bin, or safetensors shards with their index."""
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        save_file({key: tensor.clone() for key, tensor in part.items()}, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_neox_tokenizer(folder: Path) -> int:
    """Write a byte-level BPE in the form of GPT-NeoX-20b's; return how many tokens it has."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|padding|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    backend.save(str(folder / "tokenizer.json"))
    end = "<|endoftext|>"
    settings = {"bos_token": end, "eos_token": end, "unk_token": end, "tokenizer_class": "GPTNeoXTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return int(backend.get_vocab_size())


def write_llama_tokenizer(folder: Path) -> int:
    """Write a BPE in the form of LLaMA's, which starts every text with `<s>`; return how many tokens it has."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Replace("▁", " ")
    special = ["<unk>", "<s>", "</s>"]
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    token = {"__type": "AddedToken", "content": "</s>", "lstrip": False}
    settings = {"bos_token": "<s>", "eos_token": token, "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return int(backend.get_vocab_size())
