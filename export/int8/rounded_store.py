"""Rounded MatMuls on disk: rounding is the long part of an int8 export, and many graphs may share its result.

What is stored belongs to one fp32 graph, one set of frames and one `Int8Options`; the caller keeps one folder for each.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rfedge.arrays import Float32
from rfedge.export.int8.rounding import Rounded
from rfedge.io.atomic import atomic_file


class RoundedMatMul(NamedTuple):
    rounded: Rounded
    bias: Float32 | None


@dataclass(frozen=True, slots=True, eq=False)
class RoundedGroup:
    """The MatMuls that read one tensor."""

    centre: Float32  # (channels,)
    scale: Float32  # (channels,)
    step: np.float32  # scale of the int8 tensor
    matmuls: Mapping[str, RoundedMatMul]  # by the name of the node


class RoundedStore:
    """One file for each tensor, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, tensor: str, matmuls: Sequence[str]) -> bool:
        """Whether all of `MatMuls`, which read `tensor`, are stored."""
        path = self._path(tensor)
        if not path.exists():
            return False
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                return all(f"levels/{name}" in file for name in matmuls)
        except (OSError, ValueError, zipfile.BadZipFile):
            return False  # damaged: it is computed again

    def load(self, tensor: str, matmuls: Sequence[str]) -> RoundedGroup:
        """Return those of `MatMuls` that read `tensor`; all of them must be stored."""
        with np.load(self._path(tensor), allow_pickle=False) as file:
            found = {
                name: RoundedMatMul((file[f"levels/{name}"], file[f"steps/{name}"]), file.get(f"bias/{name}"))
                for name in matmuls
            }
            return RoundedGroup(file["centre"], file["scale"], np.float32(file["step"]), found)

    def save(self, tensor: str, group: RoundedGroup) -> None:
        """Store a group; another of the same tensor is replaced."""
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "centre": group.centre,
            "scale": group.scale,
            "step": np.asarray(group.step),
        }
        for name, (rounded, bias) in group.matmuls.items():
            arrays[f"levels/{name}"], arrays[f"steps/{name}"] = rounded
            if bias is not None:
                arrays[f"bias/{name}"] = bias
        with atomic_file(self._path(tensor)) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def _path(self, tensor: str) -> Path:
        # Names of tensors hold slashes and may be long.
        return self._folder / f"{hashlib.sha256(tensor.encode()).hexdigest()[:32]}.npz"
