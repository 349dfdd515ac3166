"""Backends by name; each is imported only when it is asked for, and a missing library explains itself."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final, cast

from rfedge.errors import BackendUnavailableError, one_of
from rfedge.runtimes.backends.base import PolicyParts, RuntimeSettings
from rfedge.runtimes.backends.tuned import find_choice

DEFAULT_BACKEND: Final = "onnxruntime"
AUTO: Final = "auto"
BACKEND_HELP: Final = (
    "auto (what `rfedge tune` chose on this machine, else onnxruntime), onnxruntime, openvino where it is installed, or "
    "tensorrt after `rfedge build`."
)
# name -> (module, function(path, settings) -> PolicyParts, how to get what it imports)
_BACKENDS: Final = {
    "onnxruntime": ("rfedge.runtimes.backends.ort", "open_bundle", "Install it: pip install onnxruntime."),
    "openvino": ("rfedge.runtimes.backends.openvino", "open_bundle", "Install it: pip install openvino."),
    "tensorrt": ("rfedge.runtimes.backends.tensorrt.opening", "open_bundle", "Install it: docs/how-to/build_engines.md."),
    "torch": (
        "rfedge.runtimes.backends.reference",
        "open_checkpoint",
        "Install the training extra: pip install 'rfedge[train]'.",
    ),
}
BACKENDS: Final = (AUTO, *_BACKENDS)


def import_backend(backend: str) -> ModuleType:
    """Import what runs a backend, and its library; for "auto" the one that runs without a choice.

    Raises:
        ConfigError: no backend has this name.
        BackendUnavailableError: the backend's library is not on this machine.
    """
    backend = DEFAULT_BACKEND if backend == AUTO else backend
    one_of(BACKENDS, backend, "backend")
    module_name, _, remedy = _BACKENDS[backend]
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "rfedge":
            raise  # ours: a bug keeps its traceback
        raise BackendUnavailableError(
            f"backend {backend!r}", got=f"no module {error.name!r}", expected="an installed library", remedy=remedy
        ) from None


def open_parts(backend: str, path: Path, settings: RuntimeSettings) -> PolicyParts:
    """Open the policy at `path` with `backend`: a bundle, or for torch a checkpoint.

    "auto" follows the choice of `rfedge tune` for this bundle, machine and libraries, in whatever `settings` leave at its
    default, and is onnxruntime where there is none.

    Raises:
        ConfigError: no backend has this name.
        BackendUnavailableError: the backend's library is not on this machine.
        ArtifactError: the bundle or checkpoint is missing, incomplete or altered.
    """
    if backend == AUTO:
        choice = find_choice(path) if settings.providers == RuntimeSettings().providers else None
        if choice is None:
            return open_parts(DEFAULT_BACKEND, path, settings)
        return dataclasses.replace(open_parts(choice.backend, path, choice.settings(settings)), tuned=choice.describe())
    module = import_backend(backend)
    opener = cast(Callable[[Path, RuntimeSettings], PolicyParts], getattr(module, _BACKENDS[backend][1]))
    return opener(path, settings)
