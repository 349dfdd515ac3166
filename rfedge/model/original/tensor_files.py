"""A file of tensors, whatever its kind: names and shapes at once, values as views of the mapped file.

What a file is decides its first bytes, not its suffix. Nothing but tensors is unpickled, and an archive of TorchScript,
which is code, is never opened.
"""

from __future__ import annotations

import pickle  # noqa: TID251 - only its exception: torch.load(weights_only=True) raises it for anything but tensors
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors
import torch
from safetensors.torch import load_file

from rfedge.errors import ArtifactError

_STATE_NAMES: Final = ("model_state_dict", "state_dict")
_ZIP: Final = b"PK\x03\x04"
_COPY_AGAIN: Final = "Copy it again."


@dataclass(slots=True)
class TensorFile:
    """One file of weights."""

    path: Path
    shapes: dict[str, tuple[int, ...]]  # by the file's own names; those of an optimizer are not among them
    epoch: int | None = None  # what a training checkpoint says about itself
    _mapped: dict[str, torch.Tensor] | None = field(default=None, repr=False)

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor; only the part of the file that is then touched costs memory."""
        if self._mapped is None:
            self._mapped = _read(self.path)[0]
        return self._mapped[name]

    def release(self) -> None:
        """Give back the memory of what was touched; the next `tensor` maps the file again."""
        self._mapped = None


def open_tensor_file(path: Path) -> TensorFile:
    """Look into a .safetensors, .bin, .pt or .pth file; ArtifactError for anything but tensors and plain containers."""
    tensors, epoch = _read(path)
    return TensorFile(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, epoch)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], int | None]:
    try:
        with path.open("rb") as file:
            start = file.read(512)
        if start[8:9] == b"{":
            return load_file(path), None
        _refuse_what_is_no_checkpoint(path, start)
        document = torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(_ZIP))
    except pickle.UnpicklingError as error:
        # PyTorch explains over many lines how to run the code anyway; what the code is stands in one of them.
        code = re.search(r"(?:GLOBAL|global|class) (\S+)", str(error))
        if code is None:
            raise _unreadable(path, "bytes that are no file of PyTorch's", _COPY_AGAIN) from None
        got = f"a pickle that would run {code.group(1)}"
        raise _unreadable(path, got, "Code is never run; take the file from where it was first published.") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, safetensors.SafetensorError) as error:
        if isinstance(error, RuntimeError) and start.startswith(_ZIP):
            raise _unreadable(path, "a zip archive that is cut off or altered", _COPY_AGAIN) from None
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _unreadable(path, ((reason or "").splitlines() or [type(error).__name__])[0], _COPY_AGAIN) from None
    return _tensors(path, document)


def _refuse_what_is_no_checkpoint(path: Path, start: bytes) -> None:
    if not start:
        raise _unreadable(path, "an empty file", _COPY_AGAIN)
    if start.startswith(b"version https://git-lfs"):
        raise _unreadable(path, "the pointer that Git LFS leaves in place of the file", "Run `git lfs pull`.")
    if start.lstrip()[:1] == b"<":
        raise _unreadable(path, "a web page", "Download the file itself.")
    if start.startswith(_ZIP):
        if not zipfile.is_zipfile(path):
            raise _unreadable(path, "a zip archive whose end is missing", _COPY_AGAIN)
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise _unreadable(
                path,
                "an archive of TorchScript, which is code",
                "For CLIP give openai/clip-vit-large-patch14 or timm/vit_large_patch14_clip_224.openai.",
            )
        if not any(name.endswith("/data.pkl") for name in names):
            raise _unreadable(path, "a zip archive of something else", "Give another file.")


def _tensors(path: Path, document: Any) -> tuple[dict[str, torch.Tensor], int | None]:
    epoch = document.get("epoch") if isinstance(document, Mapping) else None
    for name in _STATE_NAMES:
        if isinstance(document, Mapping) and isinstance(document.get(name), Mapping):
            document = document[name]
    if not isinstance(document, Mapping):
        raise _unreadable(path, type(document).__name__, "Give another file.")
    tensors = {str(name): tensor for name, tensor in document.items() if isinstance(tensor, torch.Tensor)}
    if not tensors:
        raise _unreadable(path, "no tensor", "Give another file.")
    return tensors, epoch if isinstance(epoch, int) else None


def _unreadable(path: Path, got: str, remedy: str) -> ArtifactError:
    return ArtifactError(f"weights {path}", got=got, expected="a file of tensors", remedy=remedy)
