"""A language model's tokenizer with the tokens that OpenFlamingo adds to it; only the `tokenizers` library is needed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import tokenizers

from rfedge.errors import ArtifactError
from rfedge.io.disk import read_json
from rfedge.language.tokenizer import END_OF_CHUNK, IMAGE, PAD, InstructionTokenizer, PromptTokens

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
        raise _unfit("the folder", f"no {TOKENIZER_NAME}", f"{TOKENIZER_NAME}, as fast tokenizers have it")
    path = files[TOKENIZER_NAME]
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise _unfit(path, str(error), "a tokenizer of the `tokenizers` library") from None
    settings: dict[str, Any] = {}
    for name in (MAP_NAME, SETTINGS_NAME):  # transformers reads both, and the second decides
        if name in files:
            settings |= _read_settings(files[name])
    end = _token(settings, "eos_token") or next((token for token in _ENDS if backend.token_to_id(token) is not None), "")
    if not end:
        raise _unfit(path, "no token that ends a text", f"eos_token in {SETTINGS_NAME}")
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


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise _unfit(path, str(error), "JSON") from None
    return {key: value for key, value in document.items() if value is not None} if isinstance(document, dict) else {}


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


def _unfit(subject: object, got: str, expected: str) -> ArtifactError:
    return ArtifactError(
        f"tokenizer {subject}", got=got, expected=expected, remedy="Give the folder of the language model's tokenizer."
    )
