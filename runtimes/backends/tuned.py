"""Choice of `rfedge tune` for one bundle on one machine, kept in the user's cache and found again by what it depends on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from rfedge.bundle.artifact import Bundle, load_bundle
from rfedge.errors import ArtifactError
from rfedge.io.disk import cache_folder
from rfedge.machine.processor import probe_processor
from rfedge.records.record import Record
from rfedge.records.statistics import Ratio
from rfedge.runtimes.backends.base import RuntimeSettings

_LIBRARIES: Final = ("onnxruntime", "openvino")
_NO_CODE: Final = ("embedding", "tokenizer", "instructions", "record", "proof")  # roles that no speed depends on


class TunedChoice(Record):
    """The fastest way to run a bundle that was found, and by how much."""

    format: Literal["rfedge-tuned"] = "rfedge-tuned"
    schema_version: int = 1
    measured_at: str
    key: dict[str, str]  # what it holds for, see `tuning_key`
    backend: str
    threads: int
    spinning: str
    precision_hint: str
    call_ms: float  # median of a policy call
    speedup: Ratio  # over untuned onnxruntime: of the one duel, or the product of those on the way
    noise_floor: Ratio  # of the default over itself

    def settings(self, given: RuntimeSettings) -> RuntimeSettings:
        """Return `given` with the choice in every field that it leaves at its default."""
        default = RuntimeSettings()
        chosen = {
            name: getattr(self, name)
            for name in ("threads", "spinning", "precision_hint")
            if getattr(given, name) == getattr(default, name)
        }
        return dataclasses.replace(given, **chosen)

    def describe(self) -> str:
        how = f"spinning {self.spinning}" if self.backend == "onnxruntime" else f"hint {self.precision_hint}"
        return (
            f"{self.backend}, {self.threads or 'all'} threads, {how}: {self.speedup.value:.2f}x of untuned onnxruntime "
            f"when tuned at {self.measured_at}"
        )


def tuning_key(bundle: Bundle) -> dict[str, str]:
    """Return what a choice depends on: the CPU as this process may use it, the libraries, the graphs."""
    processor = probe_processor()
    graphs = hashlib.sha256()
    for artifact in bundle.manifest.artifacts:
        if artifact.role not in _NO_CODE:
            graphs.update(f"{artifact.path} {artifact.sha256}\n".encode())
    return {
        "cpu": f"{processor.model}, {', '.join(processor.features)}",
        "cores": str(processor.usable_cores),
        "graphs": graphs.hexdigest(),
        **{name: _version(name) for name in _LIBRARIES},
    }


def choice_file(key: dict[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder("tuned") / f"{digest[:24]}.json"


def find_choice(path: Path) -> TunedChoice | None:
    """Return the choice for the bundle at `path`; None where there is none, or no bundle."""
    if not cache_folder("tuned").is_dir():
        return None
    try:
        key = tuning_key(load_bundle(path, verify=False))
    except ArtifactError:
        return None  # whoever opens it says what is wrong with it
    try:
        choice = TunedChoice.model_validate_json(choice_file(key).read_bytes())
    except (OSError, ValidationError):
        return None
    return choice if choice.key == key else None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
