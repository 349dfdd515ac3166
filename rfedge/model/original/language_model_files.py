"""Which files of a language model's folder or repository are needed: of a sharded one only those with missing tensors."""

from __future__ import annotations

import fnmatch
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

from rfedge.errors import ArtifactError
from rfedge.io.disk import read_json
from rfedge.model.original.names import model_names
from rfedge.model.original.sources import Source

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
    """Return the files that may hold `wanted` tensors, fetched; none where the folder holds no weights.

    Raises:
        ArtifactError: the index is damaged, or a file that it names is missing.
        BackendUnavailableError: a repository cannot be reached.
    """
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
