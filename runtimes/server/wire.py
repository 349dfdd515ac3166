"""Messages as bytes: msgpack with numpy arrays, as openpi packs them, inside limits that hold before memory is taken.

An array is a map {b"__ndarray__": True, b"data": bytes, b"dtype": "|u1", b"shape": [rows, ...]}. Whoever sends is not
trusted: dtypes and sizes are on a list, the byte count must be the product of the shape, nothing is unpickled, and a
decoded array is a view of the message that was received already. Format: openpi-client, `msgpack_numpy.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgpack
import numpy as np
import numpy.typing as npt

from rfedge.errors import ContractError, explain

__all__ = ["ALLOWED_DTYPES", "ERROR_KINDS", "MAX_LIST_ITEMS", "error_line", "pack", "parse_error_line", "unpack"]

# dtype.str of the arrays that may cross: pixels and numbers, little-endian.
ALLOWED_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "|u1": np.dtype(np.uint8),
    "<f4": np.dtype(np.float32),
    "<f8": np.dtype(np.float64),
}
ARRAY_KEYS: Final = frozenset((b"__ndarray__", b"data", b"dtype", b"shape"))
# A header of four bytes can ask for a list of 2**32 places, and lists can nest: both are bounded before allocation.
MAX_MAP_ITEMS: Final = 32
MAX_LIST_ITEMS: Final = 64
MAX_DEPTH: Final = 3  # maps and lists inside each other, the message itself counted
MAX_AXES: Final = 4
MAX_AXIS: Final = 4096
# What a failed request was: it came too late, did not fit, was no message at all, broke the policy, or the server ends.
ERROR_KINDS: Final = ("late", "refused", "malformed", "internal", "stopping")
_REMEDY: Final = "Pack a map of strings to scalars and arrays as openpi-client does."


def pack(message: Mapping[str, Any]) -> bytes:
    """Pack one message.

    Args:
        message: str keys; values are None, bool, int, float, str, lists or maps of these, and arrays of `ALLOWED_DTYPES`.

    Raises:
        ContractError: an array has another dtype.
        TypeError: another type of value.
    """
    packed = msgpack.packb(message, default=_pack_array)
    assert isinstance(packed, bytes)
    return packed


def unpack(data: bytes) -> dict[str, Any]:
    """Unpack one message; its arrays are read-only views of `data`'s parts.

    Raises:
        ContractError: it is not one msgpack map, or exceeds a limit of this module; the text says which.
    """
    try:
        message = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_map_len=MAX_MAP_ITEMS,
            max_array_len=MAX_LIST_ITEMS,
            ext_hook=_refuse_extension,
        )
    # msgpack raises these for truncated, nested, oversized and non-UTF-8 input.
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        words = " ".join(str(error).split())[:100] or type(error).__name__
        raise _malformed(words, "one msgpack map") from None
    if not isinstance(message, dict) or ARRAY_KEYS & message.keys():
        raise _malformed(f"a {type(message).__name__}", "a map of names to values")
    fields = _check(message, depth=1)
    assert isinstance(fields, dict)
    return fields


def error_line(kind: str, text: str) -> str:
    """Return the text frame that answers a request which failed, "kind: text" on one line."""
    return f"{kind}: {' '.join(text.split())}"


def parse_error_line(line: str) -> tuple[str, str]:
    """Split what `error_line` wrote into kind and text; a line of another server is of kind "internal"."""
    kind, _, text = line.partition(": ")
    return (kind, text) if kind in ERROR_KINDS else ("internal", line)


def _pack_array(value: object) -> dict[bytes, Any]:
    if isinstance(value, np.ndarray):
        if value.dtype.str not in ALLOWED_DTYPES:
            raise ContractError(
                explain("array", got=f"dtype {value.dtype}", expected=f"one of {_dtype_names()}", remedy="Cast it.")
            )
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": list(value.shape)}
    raise TypeError(f"cannot pack a {type(value).__name__}")


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")


def _check(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth > MAX_DEPTH:
        raise _malformed(f"more than {MAX_DEPTH} levels", f"at most {MAX_DEPTH} levels of maps and lists")
    if isinstance(value, list):
        return [_check(item, depth + 1) for item in value]
    if isinstance(value, dict):
        if b"__ndarray__" in value:
            return _array(value)
        for key in value:
            if not isinstance(key, str):
                raise _malformed(f"key {key[:40]!r}", "names as strings")
        return {key: _check(item, depth + 1) for key, item in value.items()}
    raise _malformed(f"a value of type {type(value).__name__}", "scalars, strings, lists, maps and arrays")


def _array(fields: dict[Any, Any]) -> npt.NDArray[Any]:
    if fields.keys() != ARRAY_KEYS or fields[b"__ndarray__"] is not True:
        raise _malformed(f"an array with keys {sorted(map(repr, fields))}"[:200], f"{sorted(map(repr, ARRAY_KEYS))}")
    name, shape, data = fields[b"dtype"], fields[b"shape"], fields[b"data"]
    dtype = ALLOWED_DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise _malformed(f"an array of dtype {str(name)[:20]!r}", f"one of {_dtype_names()}")
    # `type() is int`: True is an int too. Python's integers do not overflow in the product.
    if not (isinstance(shape, list) and len(shape) <= MAX_AXES and all(type(n) is int and 0 < n <= MAX_AXIS for n in shape)):
        raise _malformed(f"an array of shape {str(shape)[:60]}", f"up to {MAX_AXES} axes of 1 to {MAX_AXIS}")
    expected = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != expected:
        size = f"{len(data)} bytes" if isinstance(data, bytes) else f"a {type(data).__name__}"
        raise _malformed(f"an array of shape {tuple(shape)} in {size}", f"{expected} bytes")
    array: npt.NDArray[Any] = np.frombuffer(data, dtype=dtype)
    return array.reshape(shape)


def _dtype_names() -> str:
    return ", ".join(str(dtype) for dtype in ALLOWED_DTYPES.values())


def _malformed(got: str, expected: str) -> ContractError:
    return ContractError(explain("message", got=got, expected=expected, remedy=_REMEDY))
