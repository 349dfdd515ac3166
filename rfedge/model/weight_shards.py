"""Weights on disk: one model.safetensors, or shards with an index in the layout that Hugging Face reads.

Written shard by shard, so that a model larger than the memory can be stored; read as views of the mapped files, so
that a tensor costs memory when it is first used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import safetensors
import torch
from safetensors.torch import load_file, save_file

from rfedge.errors import ArtifactError
from rfedge.io.disk import read_json

WEIGHTS_NAME: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"
MAX_SHARD_BYTES: Final = 500_000_000  # one of them is in memory while it is written
_REMEDY: Final = "Copy the checkpoint again."


class TensorSpec(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_weights(
    folder: Path,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], torch.Tensor],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Write every tensor, in this order, into `folder`: model.safetensors, or its shards and the index.

    `read` is called once for each name and its result is not kept. A file grows no further than `max_shard_bytes`; a single
    larger tensor gets a file of its own.
    """
    shards = _plan_shards(specs, max_shard_bytes)
    if len(shards) == 1:
        _write_file(folder / WEIGHTS_NAME, shards[0], specs, read, on_bytes)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file_name, names, specs, read, on_bytes)
        weight_map |= dict.fromkeys(names, file_name)
    total = sum(spec.size_bytes for spec in specs.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _plan_shards(specs: Mapping[str, TensorSpec], max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, spec in specs.items():
        if shards[-1] and filled + spec.size_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += spec.size_bytes
    return shards


def _write_file(
    path: Path,
    names: list[str],
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], torch.Tensor],
    on_bytes: Callable[[int], None],
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        tensor = read(name).detach()
        if TensorSpec(tensor.dtype, tuple(tensor.shape)) != specs[name]:
            raise ValueError(f"{name}: got {tensor.dtype} {tuple(tensor.shape)}, expected {specs[name]}")
        tensors[name] = tensor.contiguous()
        on_bytes(specs[name].size_bytes)
    save_file(tensors, path, metadata={"format": "pt"})


def weight_paths(folder: Path) -> list[Path]:
    """Return the files that hold the weights of `folder`: the one, or the shards of the index in their order."""
    return [folder / name for name in _names_by_file(folder)]


def read_weights(folder: Path, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return every tensor as a view of the mapped files, or converted to `dtype` in memory.

    Raises:
        ArtifactError: a file is missing or damaged, or the shards do not hold what the index says.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file_name, expected in _names_by_file(folder).items():
        try:
            part = load_file(folder / file_name)
        except (safetensors.SafetensorError, OSError) as error:
            raise _damaged(file_name, str(error), "safetensors") from None
        promised = set(part) if expected is None else expected
        for name in sorted(promised ^ part.keys()):
            got, wanted = ("no tensor", "one") if name in promised else ("a tensor", "none")
            raise _damaged(file_name, f"{got} {name!r}", f"{wanted}, as {INDEX_NAME} says")
        # File by file, so that the mapping of one is gone before the next is converted.
        tensors |= {name: _converted(part.pop(name), dtype) for name in list(part)}
    return tensors


def _converted(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _names_by_file(folder: Path) -> dict[str, set[str] | None]:
    """Return the files in order, each with the tensors that the index expects in it; None where there is no index."""
    if (folder / WEIGHTS_NAME).is_file():
        return {WEIGHTS_NAME: None}
    files: dict[str, set[str]] = {}
    for name, file_name in _read_index(folder).items():
        files.setdefault(file_name, set()).add(name)
    return dict(files)


def _read_index(folder: Path) -> dict[str, str]:
    path = folder / INDEX_NAME
    try:
        weight_map: dict[str, str] = read_json(path)["weight_map"]
        # A name with a folder in it could reach outside of the checkpoint.
        files = set(weight_map.values())
        valid = bool(files) and all(Path(name).name == name for name in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(INDEX_NAME, repr(error), "a map from tensors to files") from None
    if not valid:
        raise _damaged(INDEX_NAME, "names of files elsewhere or none", "files beside it")
    for name in sorted(files):
        if not (folder / name).is_file():
            raise _damaged(name, "no file", f"the shard that {INDEX_NAME} names")
    return weight_map


def _damaged(name: str, got: str, expected: str) -> ArtifactError:
    return ArtifactError(f"checkpoint file {name}", got=got, expected=expected, remedy=_REMEDY)
