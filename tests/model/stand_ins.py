"""Whole sets of original files as large as a preset's, with random weights in the released layouts and little memory.

The time and memory of an import depend on names, shapes and dtypes alone; the optimizer's state is there too.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import models, pre_tokenizers

from rfedge.config import PolicyConfig
from tests.model.original_layouts import (
    Shapes,
    clip_shapes,
    language_model_config,
    language_model_shapes,
    openflamingo_shapes,
    roboflamingo_shapes,
)

# Rows of the language models' own vocabularies, before OpenFlamingo fits them to the tokenizer.
_ROWS = {"mosaic_gpt": 50432, "mpt": 50432, "gpt_neox": 50432, "llama": 32000}
_NEW_TOKENS = 3


def write_stand_ins(folder: Path, config: PolicyConfig) -> None:
    """Write one set of originals with random weights: as large as the real ones, with little memory.

    Args:
        folder: exists; gets roboflamingo.pth, checkpoint.pt, open_clip_pytorch_model.bin and lm/.
        config: of the policy.
    """
    decoder = config.decoder
    rows = _ROWS[decoder.kind]
    language_model = folder / "lm"
    language_model.mkdir()
    (language_model / "config.json").write_text(json.dumps(language_model_config(decoder, rows)))
    _write_tokenizer(language_model / "tokenizer.json", decoder.vocab_size - _NEW_TOKENS)
    sets = {
        "clip": clip_shapes(config.vision),
        "lm": language_model_shapes(decoder, rows),
        "openflamingo": openflamingo_shapes(config),
        "roboflamingo": roboflamingo_shapes(config),
    }
    with _noise(folder / "noise", max(_size_bytes(shape) for shapes in sets.values() for shape in shapes.values())) as draw:
        _save(folder / "open_clip_pytorch_model.bin", _tensors(sets["clip"], draw))
        _save(language_model / "pytorch_model.bin", _tensors(sets["lm"], draw))
        _save(folder / "checkpoint.pt", _tensors(sets["openflamingo"], draw))
        state = _tensors(sets["roboflamingo"], draw)
        trained = [shape for name, shape in sets["roboflamingo"].items() if _is_trained(name, config)]
        moments = {
            index: {"exp_avg": draw(shape), "exp_avg_sq": draw(shape), "step": draw(())}
            for index, shape in enumerate(trained)
        }
        document = {
            "epoch": 4,
            "model_state_dict": state,
            "optimizer_state_dict": {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]},
            "lr_scheduler_state_dict": {"last_epoch": 0},
        }
        _save(folder / "roboflamingo.pth", document)


def _is_trained(name: str, config: PolicyConfig) -> bool:
    """Whether the optimizer holds moments of this tensor: it is not frozen, no alias, and something reached it."""
    aliases = (".old_decoder_blocks.", ".gated_cross_attn_layers.", ".decoder_layer.")
    dead = f".{config.decoder.layers - 1}.gated_cross_attn_layer."
    is_dead = config.decoder.feature == "last_block_input" and dead in name
    return not is_dead and not any(part in name for part in aliases)


def _tensors(shapes: Shapes, draw: Callable[[tuple[int, ...]], torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    fused: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        # The two paths of a cross-attention share one storage, so that the file holds it once.
        index_and_rest = name.split(".gated_cross_attn_layers.")[-1]
        if ".gated_cross_attn_layers." in name and index_and_rest in fused:
            tensors[name] = fused[index_and_rest]
            continue
        tensors[name] = draw(shape)
        before, mark, rest = name.partition(".gated_cross_attn_layer.")
        if mark:
            fused[f"{before.rsplit('.', 1)[-1]}.{rest}"] = tensors[name]
    return tensors


@contextmanager
def _noise(path: Path, size_bytes: int) -> Iterator[Callable[[tuple[int, ...]], torch.Tensor]]:
    """Yield a function that returns tensors of normal numbers, each a storage of its own over the same mapped file."""

    rng, block = np.random.default_rng(0), 1 << 22
    with path.open("wb") as file:
        for _ in range(-(-size_bytes // (4 * block))):
            file.write((0.02 * rng.standard_normal(block, dtype=np.float32)).data)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        storage = torch.UntypedStorage.from_file(str(path), False, _size_bytes(shape))
        return torch.tensor([], dtype=torch.float32).set_(storage, 0, shape)  # type: ignore[call-overload,no-any-return]

    try:
        yield draw
    finally:
        path.unlink()


def _size_bytes(shape: tuple[int, ...]) -> int:
    size = 4
    for length in shape:
        size *= length
    return size


def _save(path: Path, document: Any) -> None:
    torch.save(document, path)


def _write_tokenizer(path: Path, count: int) -> None:
    """Write a tokenizer of `count` words; only their number matters here."""
    vocabulary = {"<|endoftext|>": 0, "<unk>": 1} | {f"word{index}": index for index in range(2, count)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(path))
