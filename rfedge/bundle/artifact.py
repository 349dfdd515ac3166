"""The bundle: one folder that holds everything a robot needs to run a policy, with a manifest that vouches for it.

    bundle/
      manifest.json            this file's `Manifest`
      backbone.onnx            frames + embedded instruction -> feature
      backbone-cpu.onnx        in int8: the same with integer kernels for CPUs, on the same weights
      vision.onnx              instead of the backbone, where it is exported in two stages: frames -> latents
      decoder.onnx             and latents + embedded instruction -> feature, each with its -cpu variant in int8
      head.onnx                features + state -> actions + state
      head-cpu.onnx            when asked for: the same with int8 weights, for CPUs
      embedding.safetensors    token embedding table, looked up once per instruction
      tokenizer.json           instruction -> token ids
      instructions.safetensors instead of both where the bundle knows a fixed list of them (`rfedge.language.instructions`)
      proof.npz                frames of the proof with what PyTorch returned, for `rfedge tune`
      engines/                 TensorRT plans, made later and per device (`rfedge.bundle.engines`); no part of the manifest

A bundle is written under a temporary name and renamed. Before it is used the manifest's own sha256 and that of every file it
lists are checked, and a file that it does not list is refused: a changed byte anywhere ends in one line.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, JsonValue, ValidationError, model_validator

from rfedge.bundle.gates import missed
from rfedge.bundle.precision import BlockPrecision, summarise_blocks
from rfedge.config import PolicyConfig
from rfedge.contract import GraphName, PolicyContract, policy_contract
from rfedge.errors import ArtifactError
from rfedge.io.atomic import atomic_directory
from rfedge.records.record import Record, first_fault

MANIFEST_NAME: Final = "manifest.json"
SCHEMA_VERSION: Final = 3
_READ_VERSIONS: Final = (2, SCHEMA_VERSION)  # 2: blocks as sentences, see `BlockPrecision`
_READ_TEXT: Final = " or ".join(map(str, _READ_VERSIONS))
ENGINES_FOLDER: Final = "engines"
# The first field of manifest.json is the sha256 of the file itself, with zeros where it stands.
_SEAL: Final = re.compile(rb'\{\n  "sha256": "([0-9a-f]{64})",\n')
_OPEN_SEAL: Final = b"0" * 64
_LONGEST_MANIFEST_BYTES: Final = 1 << 26
# embedding.safetensors: the token table, float or int8; int8 with one float32 scale a row.
EMBEDDING_TENSOR: Final = "embedding"
EMBEDDING_SCALE: Final = "scale"
Role = Literal[
    "backbone",
    "backbone-cpu",
    "vision",
    "vision-cpu",
    "decoder",
    "decoder-cpu",
    "head",
    "head-cpu",
    "weights",
    "embedding",
    "tokenizer",
    "instructions",
    "record",
    "proof",
]
# graph -> the same with integer kernels for CPUs, where there is one
CPU_ROLES: Final[dict[GraphName, Role]] = {
    "backbone": "backbone-cpu",
    "vision": "vision-cpu",
    "decoder": "decoder-cpu",
    "head": "head-cpu",
}


class Artifact(Record):
    path: str = Field(pattern=r"^[^/\x00][^\x00]*$", max_length=255)
    role: Role
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class PrecisionRecord(Record):
    """Requested precision, and that of each block, read back from the finished graph."""

    requested: str
    blocks: dict[str, BlockPrecision]

    @property
    def effective(self) -> str:
        """The name the bundle goes by."""
        return summarise_blocks(self.requested, self.blocks)


class CalibrationRecord(Record):
    """Where activation ranges came from: every (episode, frame) used, so that a calibration can be repeated."""

    dataset: str
    method: str
    frames: tuple[tuple[int, int], ...]
    sha256: str


class ParityRecord(Record):
    """Measured differences of the exported graphs from PyTorch, with the thresholds they were held to.

    `forced` says that the bundle was written although it missed one.
    """

    num_steps: int
    inputs: str
    metrics: dict[str, float]
    thresholds: dict[str, float]
    passed: bool
    forced: bool = False

    @property
    def forced_past(self) -> tuple[str, ...]:
        """Every threshold that a forced bundle missed, with the measured number; empty for any other bundle."""
        return tuple(missed(self.metrics, self.thresholds)) if self.forced else ()


class EngineForm(Record):
    """Float type of one graph in TensorRT, besides the int8 that stands in the graph."""

    floats: Literal["fp16", "fp32"]  # "fp16", or "fp32" where the graph keeps its own types
    islands: dict[str, str] = Field(default_factory=dict)  # ONNX node -> why it computes in fp32 all the same
    reason: str = ""  # why floats stay fp32, or ""
    # block -> largest magnitude that fp16 had to hold over the frames of the check, of at most 65504
    largest: dict[str, float] = Field(default_factory=dict)
    num_frames: int = 0


class TensorRtRecord(Record):
    """Computation of the target TensorRT where it is not that of CPUs; the graphs are the same files."""

    graphs: dict[GraphName, EngineForm]  # graph -> its form
    parity: ParityRecord | None = None  # of the engines' arithmetic, emulated


class Manifest(Record):
    """manifest.json.

    `merge_tokens` is how many patch tokens each layer of the vision transformer merges (`rfedge.model.token_merging`).
    `words_blocks` is how many decoder blocks the graphs lack, because the export has run them on the bundle's sentences.
    `tensorrt` is None where engines compute in the types of the graphs.

    `training` is what the checkpoint says of how it came to be, as JSON values; `initial` in it is the same of the
    checkpoint that it started from.
    """

    format: Literal["rfedge-bundle"] = "rfedge-bundle"
    schema_version: Annotated[
        Literal[3], BeforeValidator(lambda version: SCHEMA_VERSION if version in _READ_VERSIONS else version)
    ] = SCHEMA_VERSION
    policy: PolicyConfig
    contract: PolicyContract
    precision: PrecisionRecord
    merge_tokens: int = 0
    words_blocks: int = 0
    calibration: CalibrationRecord | None = None
    parity: ParityRecord
    tensorrt: TensorRtRecord | None = None
    source: dict[str, str]
    training: dict[str, JsonValue] | None = None
    versions: dict[str, str]
    artifacts: tuple[Artifact, ...] = ()

    @model_validator(mode="after")
    def _contract_is_the_policy_s(self) -> Manifest:
        if self.contract != policy_contract(self.policy, two_stages=bool(self.contract.backbone_stages)):
            raise ValueError("contract: got another one than the policy's sizes make")
        return self

    @property
    def scenes(self) -> tuple[str, ...]:
        """Scenes of the demonstrations that the policy was trained on; empty where nothing is said of them."""
        dataset = (self.training or {}).get("dataset")
        scenes = dataset.get("scenes") if isinstance(dataset, dict) else None
        return tuple(str(scene) for scene in scenes) if isinstance(scenes, list) else ()


class Bundle:
    """An opened, verified bundle."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest

    @property
    def policy(self) -> PolicyConfig:
        return self.manifest.policy

    @property
    def contract(self) -> PolicyContract:
        return self.manifest.contract

    @property
    def size_bytes(self) -> int:
        return sum(artifact.size_bytes for artifact in self.manifest.artifacts)

    def backbone_graphs(self, *, for_cpu: bool) -> dict[GraphName, Path]:
        """Return the graphs in call order, "backbone" or "vision" and "decoder"; those for CPUs where there are any.

        Raises ArtifactError where the bundle lacks one.
        """
        return {name: self.graph(name, for_cpu=for_cpu) for name in self.contract.graphs if name != "head"}

    def graph(self, name: GraphName, *, for_cpu: bool) -> Path:
        """Return one graph, as `backbone_graphs` does; raises ArtifactError where the bundle lacks it."""
        return self.path(CPU_ROLES[name] if for_cpu and self.has(CPU_ROLES[name]) else name)

    def has(self, role: Role) -> bool:
        """Say whether some file plays `role`."""
        return any(artifact.role == role for artifact in self.manifest.artifacts)

    def path(self, role: Role) -> Path:
        """Return the file that plays `role`. Raises ArtifactError if the bundle has no such file."""
        for artifact in self.manifest.artifacts:
            if artifact.role == role:
                return self.root / artifact.path
        remedy = "Export the bundle again."
        raise ArtifactError(f"bundle {self.root}", got=f"no {role} artifact", expected="one", remedy=remedy)


def hash_file(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Return the sha256 of a file; `on_bytes` is called with the size of each block that was read."""
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()


@contextmanager
def write_bundle(path: Path, *, overwrite: bool = False) -> Iterator[BundleWriter]:
    """Open a bundle for writing; it appears at `path` only when the block ends without an error. Raises ArtifactError if
    `path` exists and `overwrite` is false, or the block ended without a manifest.
    """
    with atomic_directory(path, overwrite=overwrite) as temporary:
        writer = BundleWriter(temporary)
        yield writer
        if not (temporary / MANIFEST_NAME).is_file():
            raise ArtifactError(
                f"bundle {path}", got="no manifest", expected="one call of finish()", remedy="This is a bug of ours."
            )


class BundleWriter:
    """Collects a bundle's files in `root` and hashes them at the end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._roles: dict[str, Role] = {}

    def add(self, name: str, role: Role) -> Path:
        """Register the file `name` and return the path to write it to."""
        self._roles[name] = role
        return self.root / name

    def finish(self, manifest: Manifest) -> Manifest:
        """Hash every registered file, write manifest.json and return the manifest with its artifacts. Raises ArtifactError
        if a file was written without being registered.
        """
        _refuse_others(self.root, set(self._roles))
        artifacts = tuple(
            Artifact(path=name, role=role, sha256=hash_file(self.root / name), size_bytes=(self.root / name).stat().st_size)
            for name, role in sorted(self._roles.items())
        )
        manifest = manifest.model_copy(update={"artifacts": artifacts})
        write_manifest(self.root, manifest)
        return manifest


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write `root`/manifest.json with the sha256 of its own bytes."""
    text = manifest.model_dump_json(indent=2).encode() + b"\n"
    text = text.replace(b"{\n", b'{\n  "sha256": "' + _OPEN_SEAL + b'",\n', 1)
    sealed = text.replace(_OPEN_SEAL, hashlib.sha256(text).hexdigest().encode(), 1)
    (root / MANIFEST_NAME).write_bytes(sealed)


def load_bundle(path: Path, *, verify: bool = True) -> Bundle:
    """Open the bundle at `path`; `verify` hashes every file, which costs about one second per gigabyte.

    Raises ArtifactError if no bundle is there, its manifest cannot be read or was altered, or a file is missing, altered or
    not listed.
    """
    manifest = _read_manifest(path)
    for artifact in manifest.artifacts:
        _check_artifact(path, artifact, verify=verify)
    _refuse_others(path, {artifact.path for artifact in manifest.artifacts})
    return Bundle(path, manifest)


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST_NAME
    if not file.is_file():
        got = "no folder" if not path.is_dir() else f"no {MANIFEST_NAME}"
        remedy = "Check the path or export the policy again."
        raise ArtifactError(f"bundle {path}", got=got, expected="a folder written by `rfedge export`", remedy=remedy)
    try:
        with file.open("rb") as opened:
            text = opened.read(_LONGEST_MANIFEST_BYTES)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error), "a readable file") from None
    seal = _SEAL.match(text)
    if seal is not None and hashlib.sha256(text.replace(seal[1], _OPEN_SEAL, 1)).hexdigest().encode() != seal[1]:
        raise _unreadable(path, "bytes that do not make its sha256", "the bytes that were written")
    version = re.search(rb'"schema_version":\s*(\d{1,9})\b', text)
    if version is not None and int(version[1]) not in _READ_VERSIONS:
        raise _unreadable(path, f"schema version {int(version[1])}", f"schema version {_READ_TEXT}")
    if seal is None:
        raise _unreadable(path, "no sha256 of its own", "one in its first line")
    try:
        return Manifest.model_validate_json(b"{" + text[seal.end() :])
    except ValidationError as error:
        raise _unreadable(path, first_fault(error), f"schema version {_READ_TEXT}") from None


def _unreadable(path: Path, got: str, expected: str) -> ArtifactError:
    remedy = "Copy the bundle again, or export the policy again with this version of rfedge."
    return ArtifactError(f"bundle {path}", got=f"{MANIFEST_NAME} with {got}", expected=expected, remedy=remedy)


def _refuse_others(root: Path, listed: set[str]) -> None:
    """Refuse what nobody vouches for: a graph might read its weights from there. `rfedge build` vouches for its engines."""
    for folder, folders, names in os.walk(root):
        relative = Path(folder).relative_to(root)
        if relative == Path():
            folders[:] = [name for name in folders if name != ENGINES_FOLDER]
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*names, *links):
            path = (relative / name).as_posix()
            if path not in listed and path != MANIFEST_NAME:
                raise ArtifactError(
                    f"bundle {root}",
                    got=f"file {path}, which its manifest does not list",
                    expected=f"the {len(listed)} files that it lists, and {ENGINES_FOLDER}/",
                    remedy="Move it elsewhere, or copy the bundle again.",
                )


def _check_artifact(root: Path, artifact: Artifact, *, verify: bool) -> None:
    file = (root / artifact.path).resolve()
    if not file.is_relative_to(root.resolve()):
        expected, remedy = "a path inside the bundle", "Do not use this bundle."
        raise ArtifactError(f"bundle {root}", got=f"artifact path {artifact.path!r}", expected=expected, remedy=remedy)
    if not file.is_file():
        raise ArtifactError(
            f"bundle {root}", got=f"no file {artifact.path}", expected=f"its {artifact.role}", remedy="Copy it again."
        )
    if file.stat().st_size != artifact.size_bytes:
        got, remedy = f"{file.stat().st_size} bytes", "It was truncated or altered; copy or export the bundle again."
        raise ArtifactError(f"bundle file {artifact.path}", got=got, expected=f"{artifact.size_bytes} bytes", remedy=remedy)
    if not verify:
        return
    try:
        actual = hash_file(file)
    except OSError as error:
        got, remedy = error.strerror or str(error), "Check its permissions, or copy the bundle again."
        raise ArtifactError(f"bundle file {artifact.path}", got=got, expected="a readable file", remedy=remedy) from None
    if actual != artifact.sha256:
        expected, remedy = artifact.sha256[:12], "It was altered after export; copy or export the bundle again."
        raise ArtifactError(f"bundle file {artifact.path}", got=f"sha256 {actual[:12]}", expected=expected, remedy=remedy)
