"""A language model's folder or repository: its configuration as our decoder, its tokenizer, and which weights are needed."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Final

import tokenizers
from pydantic import TypeAdapter, ValidationError

from rfedge.config import DecoderConfig
from rfedge.errors import ArtifactError
from rfedge.io.disk import read_json
from rfedge.language.tokenizer import END_OF_CHUNK, IMAGE, PAD, InstructionTokenizer, PromptTokens
from rfedge.model.original.names import model_names
from rfedge.model.original.sources import Source

_ADAPTER: Final[TypeAdapter[DecoderConfig]] = TypeAdapter(DecoderConfig)


def decoder_config(folder: Path, **shared: Any) -> DecoderConfig:
    """Return the decoder that a Hugging Face folder of a MosaicGPT, MPT, GPT-NeoX or LLaMA model describes.

    `shared` are the fields that OpenFlamingo decides: vocabulary, text length, cross-attention.
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


TOKENIZER_NAME: Final = "tokenizer.json"
SETTINGS_NAME: Final = "tokenizer_config.json"
MAP_NAME: Final = "special_tokens_map.json"
TOKENIZER_FILES: Final = (TOKENIZER_NAME, SETTINGS_NAME, MAP_NAME)


def flamingo_tokenizer(paths: Iterable[Path], text_length: int) -> InstructionTokenizer:
    """Add `<|endofchunk|>`, `<image>` and, where there is none yet, a padding token, in the original's order.

    A tokenizer to which they were added before keeps its ids. `paths` are tokenizer.json and the files that name its special
    tokens. ArtifactError: it is missing or damaged, or names no token that ends a text.
    """
    files = {path.name: path for path in paths}
    if TOKENIZER_NAME not in files:
        raise _unfit_tokenizer("the folder", f"no {TOKENIZER_NAME}", f"{TOKENIZER_NAME}, as fast tokenizers have it")
    path = files[TOKENIZER_NAME]
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise _unfit_tokenizer(path, str(error), "a tokenizer of the `tokenizers` library") from None
    settings: dict[str, Any] = {}
    for name in (MAP_NAME, SETTINGS_NAME):  # transformers reads both, and the second decides
        if name in files:
            try:
                document = read_json(files[name])
            except (OSError, ValueError) as error:
                raise _unfit_tokenizer(files[name], str(error), "JSON") from None
            if isinstance(document, dict):
                settings |= {key: value for key, value in document.items() if value is not None}
    end = _token(settings, "eos_token") or next((token for token in _ENDS if backend.token_to_id(token) is not None), "")
    if not end:
        raise _unfit_tokenizer(path, "no token that ends a text", f"eos_token in {SETTINGS_NAME}")
    begin = _begin(backend, settings)
    pad = _token(settings, "pad_token") or PAD
    unknown = _token(settings, "unk_token")
    # In the original's order. Those that are known keep their ids, but from now on are never split into pieces.
    for token in (begin, end, unknown, END_OF_CHUNK, IMAGE, pad):
        if token:
            backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False)])
    PromptTokens(end, begin, pad).record(backend)
    return InstructionTokenizer(backend, text_length)


# Where no settings lie beside the tokenizer: GPT-NeoX, LLaMA.
_ENDS: Final = ("<|endoftext|>", "</s>")


def _token(settings: dict[str, Any], name: str) -> str:
    value = settings.get(name) or ""
    return str(value.get("content", "")) if isinstance(value, dict) else str(value)


def _begin(backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> str:
    """Return the token that this tokenizer puts before every text, as LLaMA's does; GPT-NeoX's puts none."""
    name = _token(settings, "bos_token")
    wanted = settings.get("add_bos_token")
    if wanted is None:
        bare = backend.encode("a", add_special_tokens=False).ids
        whole = backend.encode("a", add_special_tokens=True).ids
        first = backend.id_to_token(whole[0]) if whole else None
        # A template that holds `<image>` is a prompt of ours, whose first token says the same.
        wanted = whole[:1] != bare[:1] and first != IMAGE
        name = name or (first or "" if wanted else "")
        # LLaMA's class puts its token there even where the file has no template.
        wanted = wanted or str(settings.get("tokenizer_class", "")).startswith("Llama")
    return name if wanted else ""


def _unfit_tokenizer(subject: object, got: str, expected: str) -> ArtifactError:
    return ArtifactError(
        f"tokenizer {subject}", got=got, expected=expected, remedy="Give the folder of the language model's tokenizer."
    )
