"""Reads CALVIN's pickled `.npy` files without running what is inside them.

CALVIN stores its language annotations as a pickled dict in an object array. A pickle is a program; this reader lets it
build numpy arrays and numpy numbers and refuses every other name. It is the only file here that touches pickle.
"""

from __future__ import annotations

import pickle  # noqa: TID251 - CALVIN's format is a pickle; `_Restricted` below refuses all but numpy's own builders
from pathlib import Path
from typing import Any, Final

import numpy as np

from rfedge.errors import DatasetError

# numpy's private module moved from numpy.core to numpy._core in numpy 2; files of both ages exist.
_ALLOWED: Final = frozenset(
    {("numpy", "ndarray"), ("numpy", "dtype")}
    | {
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    }
    | {("builtins", name) for name in ("dict", "list", "tuple", "str", "int", "float", "bool")}
)


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _ForbiddenNameError(f"{module}.{name}")
        return super().find_class(module, name)


class _ForbiddenNameError(Exception):
    pass


def read_object_file(path: Path) -> dict[str, Any]:
    """Return the dict that `np.save` put into `path`."""
    subject = f"file {path}"
    if not path.is_file():
        raise DatasetError(subject, got="no file", expected="a numpy file", remedy="Copy the dataset again.")
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read_header(file)
            content = _Restricted(file).load() if dtype.hasobject else None
    except _ForbiddenNameError as error:
        expected = "numpy arrays, lists, dicts, text and numbers"
        remedy = "Do not open this file with anything else: it may run code. Get the dataset from its authors."
        raise DatasetError(subject, got=f"the class {error}", expected=expected, remedy=remedy) from None
    # A damaged pickle can raise nearly anything; all of these come from parsing, none from code of ours.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise DatasetError(
            subject, got=f"an unreadable file ({error})", expected="a pickled dict", remedy="Copy it again."
        ) from None
    value = content.item() if isinstance(content, np.ndarray) and content.shape == shape == () else None
    if not isinstance(value, dict):
        raise DatasetError(
            subject, got=f"an array of shape {shape}", expected="one pickled dict", remedy="Use CALVIN's own file."
        )
    return value


def write_object_file(path: Path, content: dict[str, Any]) -> None:
    """Write `content` so that CALVIN's `np.load(path, allow_pickle=True).item()` returns it."""
    with path.open("wb") as file:  # np.save would append .npy to a temporary name
        np.save(file, np.array(content, dtype=object), allow_pickle=True)
