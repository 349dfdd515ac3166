"""A language model's folder or repository: its config.json as our decoder, and which files of weights are needed."""

from __future__ import annotations

import fnmatch
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from rfedge.config import DecoderConfig
from rfedge.errors import ArtifactError
from rfedge.io.disk import read_json
from rfedge.model.original.names import model_names
from rfedge.model.original.sources import Source

_ADAPTER: Final[TypeAdapter[DecoderConfig]] = TypeAdapter(DecoderConfig)


def decoder_config(folder: Path, **shared: Any) -> DecoderConfig:
    """Return the decoder that a Hugging Face folder of a MosaicGPT, MPT, GPT-NeoX or LLaMA model describes.

    `shared` are the fields that OpenFlamingo decides: vocabulary, text length, cross-attention.

    Raises:
        ArtifactError: no readable config.json, or a model that no decoder here reproduces; the text names the field.
    """
    path = folder / "config.json"
    try:
        document = read_json(path)
        model_type = document["model_type"]
        if model_type not in _READERS:
            raise _unfit(path, "model_type", model_type, ", ".join(_READERS))
        fields = _READERS[model_type](path, document)
        return _ADAPTER.validate_python({"kind": model_type, **fields, **shared})
    except (OSError, ValidationError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"language model {path}", got=repr(error), expected="its config.json", remedy="Copy the folder again."
        ) from error


def _unfit(path: Path, field: str, got: object, expected: object) -> ArtifactError:
    return ArtifactError(
        f"language model {path}: {field}", got=got, expected=expected, remedy="No decoder here reproduces it."
    )


def _require(path: Path, document: dict[str, Any], field: str, *, expected: object) -> None:
    """Raise ArtifactError unless `field` is absent or as expected."""
    if document.get(field, expected) != expected:
        raise _unfit(path, field, document[field], expected)


def _mosaic_gpt(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    for field, expected in (("alibi", True), ("no_bias", True), ("attn_clip_qkv", None), ("softmax_scale", None)):
        _require(path, document, field, expected=expected)
    _require(path, document, "mlp_ratio", expected=4)
    return {
        "width": document["d_model"],
        "layers": document["n_layers"],
        "heads": document["n_heads"],
        "qk_norm": document["attn_qk_ln"],
        "alibi_bias_max": document["alibi_bias_max"],
    }


def _mpt(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    attention = document.get("attn_config") or {}
    for field, expected in (("alibi", True), ("softmax_scale", None)):
        _require(path, attention, field, expected=expected)
    _require(path, document, "no_bias", expected=True)
    _require(path, document, "expansion_ratio", expected=4)
    return {
        "width": document["d_model"],
        "layers": document["n_layers"],
        "heads": document["n_heads"],
        "qk_norm": False,  # transformers ignores the field `qk_ln`, and so do the weights
        "alibi_bias_max": attention.get("alibi_bias_max", 8),
    }


def _gpt_neox(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    _require(path, document, "hidden_act", expected="gelu")
    _require(path, document, "rope_scaling", expected=None)
    rope = document.get("rope_parameters") or {}  # where transformers 5 keeps what had fields of its own
    return {
        "width": document["hidden_size"],
        "layers": document["num_hidden_layers"],
        "heads": document["num_attention_heads"],
        "mlp_width": document["intermediate_size"],
        "parallel_residual": document.get("use_parallel_residual", True),
        "rotary_fraction": rope.get("partial_rotary_factor", document.get("rotary_pct", 0.25)),
        "rotary_base": rope.get("rope_theta", document.get("rotary_emb_base", 10000)),
        "norm_eps": document.get("layer_norm_eps", 1e-5),
    }


def _llama(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    for field, expected in (("hidden_act", "silu"), ("rope_scaling", None), ("attention_bias", False)):
        _require(path, document, field, expected=expected)
    heads = document["num_attention_heads"]
    rope = document.get("rope_parameters") or {}
    return {
        "width": document["hidden_size"],
        "layers": document["num_hidden_layers"],
        "heads": heads,
        "key_value_heads": document.get("num_key_value_heads") or heads,
        "mlp_width": document["intermediate_size"],
        "rotary_base": rope.get("rope_theta", document.get("rope_theta", 10000)),
        "norm_eps": document.get("rms_norm_eps", 1e-6),
    }


_READERS: Final = {"mosaic_gpt": _mosaic_gpt, "mpt": _mpt, "gpt_neox": _gpt_neox, "llama": _llama}


# Where the released models took theirs from, by the name of the preset.
UPSTREAM: Final = {
    "M-3B": "anas-awadalla/mpt-1b-redpajama-200b",
    "M-3B-IFT": "anas-awadalla/mpt-1b-redpajama-200b-dolly",
    "G-4B": "togethercomputer/RedPajama-INCITE-Base-3B-v1",
    "G-4B-IFT": "togethercomputer/RedPajama-INCITE-Instruct-3B-v1",
    "L-9B": "huggyllama/llama-7b",
    "M-9B": "anas-awadalla/mpt-7b",
}
# Index, whole file, shards: of each form the first that is there.
_FORMS: Final = (
    ("model.safetensors.index.json", "model.safetensors", "model-*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model-*.bin"),
)


def weight_files(source: Source, kind: str, wanted: AbstractSet[str]) -> list[Path]:
    """Return the files that may hold `wanted` tensors, fetched; none where the folder holds no weights."""
    if not wanted:
        return []
    for index, whole, shards in _FORMS:
        if source.has(index):
            return source.fetch(_holders(source, index, kind, wanted))
        names = [whole] if source.has(whole) else [name for name in source.names if fnmatch.fnmatchcase(name, shards)]
        if names:
            return source.fetch(names)
    return []


def _holders(source: Source, index: str, kind: str, wanted: AbstractSet[str]) -> list[str]:
    (path,) = source.fetch([index])
    try:
        weight_map: dict[str, str] = read_json(path)["weight_map"]
        named = model_names(weight_map, kind)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"language model {path}", got=repr(error), expected="a map from tensors to files", remedy="Copy it again."
        ) from None
    return sorted({weight_map[key] for key, name in named.items() if name in wanted})
