"""Which tensor of which file becomes which tensor of ours, decided from names and shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

import torch

from rfedge.errors import ArtifactError
from rfedge.model.original.names import IGNORED, OUTPUT_PROJECTION, THIRDS, clip_names, model_names, split_third
from rfedge.model.original.sources import some_of
from rfedge.model.original.tensor_files import TensorFile, open_tensor_file
from rfedge.model.policy import RoboFlamingo

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
    """Where every tensor comes from."""

    shapes: dict[str, tuple[int, ...]]
    # joined along rows, one or three; names without an entry are in no file
    pieces: dict[str, tuple[Piece, ...]] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)  # tensors that were recognised and needed, by file
    left_over: list[str] = field(default_factory=list)  # `file: key` that nobody knows
    mismatched: list[Mismatch] = field(default_factory=list)  # they are in `pieces` too

    @property
    def missing(self) -> list[str]:
        """Names of ours that no file holds."""
        return [name for name in self.shapes if name not in self.pieces]

    def new_rows(self, name: str) -> int:
        """How many rows of the vocabulary the files lack for this tensor."""
        return max(0, self.shapes[name][0] - self._shape(name)[0]) if name in _VOCABULARY and name in self.pieces else 0

    def read(self, name: str, extend: Callable[[int], torch.Tensor] | None = None) -> torch.Tensor:
        """Return one tensor in its own dtype, a view of the file where it can be one.

        `extend` returns as many rows as it is asked for, where the files lack some; without it they are zero.
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

    def check(self, policy: str) -> None:
        """Raise ArtifactError where tensors in the files have other shapes than those of `policy`; the text names ten."""
        if self.mismatched:
            listed = [f"{name} {got} not {expected}" for _, name, got, expected in self.mismatched]
            subject = f"weights {', '.join(sorted({mismatch.file for mismatch in self.mismatched}))}"
            got, remedy = f"{len(listed)} tensors of another shape: {some_of(listed)}", "The file is of another model."
            raise ArtifactError(subject, got=got, expected=f"those of {policy}", remedy=remedy)

    def note_mismatch(self, name: str) -> None:
        """Note it when the shape of a tensor in the files is not ours."""
        shape, expected = self._shape(name), self.shapes[name]
        piece = self.pieces[name][0]
        same = shape[1:] == expected[1:] if piece.fits_vocabulary else shape == expected
        if not same:
            self.mismatched.append(Mismatch(piece.file.path.name, name, shape, expected))


def names_of(planned: PlannedFile, kind: str) -> dict[str, str | None]:
    """Return what the tensors of a file are called here, see `rfedge.model.original.names.model_names`."""
    keys = planned.file.shapes
    return clip_names(keys) if planned.role == "clip" else model_names(keys, kind)


def plan_weights(files: Sequence[PlannedFile], shapes: Mapping[str, tuple[int, ...]], kind: str) -> WeightPlan:
    """Decide for every tensor where it comes from: a later file wins, within a file the first of two copies."""
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
        plan.note_mismatch(name)
    return plan


@dataclass(frozen=True, slots=True)
class WeightsReport:
    taken: dict[str, int]
    missing: tuple[str, ...]  # names of ours that no file holds; they keep their random values
    left_over: tuple[str, ...]  # `file: key` that nobody knows
    assumed: tuple[str, ...]  # sentences on values that were derived


@dataclass(frozen=True, slots=True)
class OriginalWeights:
    """The files of one model, in the order in which the original reads them; absent ones are left out.

    `others` are searched for the gripper camera's own resampler, which the original makes but never saves.
    """

    language_model: Path
    vision: Path
    openflamingo: Path | None = None
    roboflamingo: Path | None = None
    others: tuple[Path, ...] = ()


def load_original(
    policy: RoboFlamingo, files: OriginalWeights, *, without: Sequence[str] = ()
) -> tuple[WeightsReport, torch.Tensor]:
    """Fill `policy` in place; its vocabulary is the tokenizer's, so the language model's rows are cut to it.

    `without` are prefixes of our names that are not expected, such as "head." without a RoboFlamingo file. Returns the
    report, and the output projection (vocabulary, width) of the language model: its own or the embedding.

    Raises ArtifactError where a file cannot be read, or a tensor has another shape.
    """
    parts = sorted(files.language_model.glob("*.safetensors")) or sorted(files.language_model.glob("pytorch_model*.bin"))
    if not parts:
        expected, remedy = "*.safetensors or pytorch_model*.bin", "Copy the folder again."
        raise ArtifactError(f"language model {files.language_model}", got="no weights", expected=expected, remedy=remedy)
    chain: list[tuple[Role, Path | None]] = [
        *(("language model", part) for part in parts),
        ("clip", files.vision),
        ("openflamingo", files.openflamingo),
        ("roboflamingo", files.roboflamingo),
        *(("other", path) for path in files.others),
    ]
    shapes = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    shapes.setdefault(OUTPUT_PROJECTION, shapes["embedding.weight"])
    planned = [PlannedFile(role, open_tensor_file(path)) for role, path in chain if path is not None]
    plan = plan_weights(planned, shapes, policy.config.decoder.kind)
    plan.check(policy.config.name)
    assumed = [
        f"{name}: {rows} new rows are zero unless a later file holds them"
        for name in ("embedding.weight", OUTPUT_PROJECTION)
        if (rows := plan.new_rows(name)) > 0
    ]
    if policy.config.resampler.per_camera and plan.copy_missing_resampler():
        # The original copies its resampler while it is still random, then neither trains nor saves the copy.
        assumed.append("the gripper camera's resampler is in no file: it is a copy of the static camera's")
    values = {name: plan.read(name) for name in plan.pieces}
    projection = values.get(OUTPUT_PROJECTION, values.get("embedding.weight", policy.embedding.weight.detach()))
    own = policy.state_dict().keys()
    policy.load_state_dict({name: tensor for name, tensor in values.items() if name in own}, strict=False)
    report = WeightsReport(
        plan.taken,
        tuple(name for name in plan.missing if name in own and not name.startswith(tuple(without))),
        tuple(plan.left_over),
        tuple(assumed),
    )
    return report, projection.to(torch.float32)
