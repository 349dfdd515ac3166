"""Which tensor of which file becomes which tensor of ours, decided from names and shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import torch

from rfedge.model.original.names import (
    IGNORED,
    OUTPUT_PROJECTION,
    THIRDS,
    clip_names,
    model_names,
    split_third,
)
from rfedge.model.original.tensor_files import TensorFile

Role = Literal["language model", "clip", "openflamingo", "roboflamingo", "other"]
_GRIPPER: Final = "backbone.resampler_gripper."
_VOCABULARY: Final = ("embedding.weight", OUTPUT_PROJECTION)


class PlannedFile(NamedTuple):
    """One file and what it is; of an "other" file only a gripper camera's resampler is taken."""

    role: Role
    file: TensorFile


class Piece(NamedTuple):
    """One tensor of one file, a whole or a third of one of ours."""

    file: TensorFile
    key: str
    fits_vocabulary: bool


class Mismatch(NamedTuple):
    """A tensor of another shape than the policy's."""

    file: str
    name: str
    got: tuple[int, ...]
    expected: tuple[int, ...]


@dataclass(slots=True)
class WeightPlan:
    """Where every tensor comes from.

    Attributes:
        pieces: what each is joined from along its rows, one or three tensors; names without an entry are in no file.
        taken: tensors that were recognised and needed, by file.
        left_over: `file: key` that nobody knows.
        mismatched: tensors of another shape; they are in `pieces` too.
    """

    shapes: dict[str, tuple[int, ...]]
    pieces: dict[str, tuple[Piece, ...]] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)
    left_over: list[str] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """Names of ours that no file holds."""
        return [name for name in self.shapes if name not in self.pieces]

    def new_rows(self, name: str) -> int:
        """How many rows of the vocabulary the files lack for this tensor."""
        return max(0, self.shapes[name][0] - self._shape(name)[0]) if name in _VOCABULARY and name in self.pieces else 0

    def read(self, name: str, extend: Callable[[int], torch.Tensor] | None = None) -> torch.Tensor:
        """Return one tensor in its own dtype, a view of the file where it can be one.

        Args:
            extend: returns as many rows as it is asked for, where the files lack some; without it they are zero.
        """
        parts = [piece.file.tensor(piece.key) for piece in self.pieces[name]]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if (rows := self.new_rows(name)) > 0:
            new = torch.zeros(rows, *tensor.shape[1:]) if extend is None else extend(rows)
            tensor = torch.cat([tensor, new.to(tensor.dtype)])
        if name in _VOCABULARY:
            tensor = tensor[: self.shapes[name][0]]
        return tensor.reshape(self.shapes[name])

    def copy_missing_resampler(self) -> bool:
        """Let a missing resampler of the gripper camera be the static camera's; return whether one was missing."""
        missing = [name for name in self.missing if name.startswith(_GRIPPER)]
        for name in missing:
            self.pieces[name] = self.pieces.get(name.replace(_GRIPPER, "backbone.resampler."), ())
        self.pieces = {name: pieces for name, pieces in self.pieces.items() if pieces}
        return bool(missing)

    def release(self) -> None:
        """Give back the memory of everything that was read."""
        for pieces in self.pieces.values():
            for piece in pieces:
                piece.file.release()

    def _shape(self, name: str) -> tuple[int, ...]:
        shapes = [piece.file.shapes[piece.key] for piece in self.pieces[name]]
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]
        expected = self.shapes[name]
        while len(shape) > len(expected) and shape[0] == 1:  # timm keeps the batch's axis
            shape = shape[1:]
        return shape

    def check(self, name: str) -> None:
        """Note it when the shape of a tensor in the files is not ours."""
        shape, expected = self._shape(name), self.shapes[name]
        piece = self.pieces[name][0]
        same = shape[1:] == expected[1:] if piece.fits_vocabulary else shape == expected
        if not same:
            self.mismatched.append(Mismatch(piece.file.path.name, name, shape, expected))


def names_of(planned: PlannedFile, kind: str, keys: Iterable[str] | None = None) -> dict[str, str | None]:
    """Return what the tensors of a file are called here, see `rfedge.model.original.names.model_names`."""
    keys = planned.file.shapes if keys is None else keys
    return clip_names(keys) if planned.role == "clip" else model_names(keys, kind)


def plan_weights(files: Sequence[PlannedFile], shapes: Mapping[str, tuple[int, ...]], kind: str) -> WeightPlan:
    """Decide for every tensor where it comes from: a later file wins, within a file the first of two copies.

    Args:
        files: in the order in which the original reads them.
    """
    plan = WeightPlan(dict(shapes))
    for planned in files:
        found: dict[str, dict[str, str]] = {}
        for key, named in names_of(planned, kind).items():
            name, third = split_third(named or "")
            if planned.role == "other" and not name.startswith(_GRIPPER):
                continue
            if named is None or (named != IGNORED and name not in shapes and name != OUTPUT_PROJECTION):
                plan.left_over.append(f"{planned.file.path.name}: {key}")
            elif name in shapes:
                found.setdefault(name, {}).setdefault(third, key)
        for name, keys in found.items():
            # A third without the others is no tensor; then the name stays missing.
            order = [third for third in ("", *THIRDS) if third in keys]
            if (planned.role == "other" and name in plan.pieces) or order not in ([""], list(THIRDS)):
                continue
            fits = planned.role == "language model" and name in _VOCABULARY
            plan.pieces[name] = tuple(Piece(planned.file, keys[third], fits) for third in order)
        taken = sum(len(keys) for keys in found.values())
        plan.taken[planned.file.path.name] = plan.taken.get(planned.file.path.name, 0) + taken
    for name in plan.pieces:
        plan.check(name)
    return plan
