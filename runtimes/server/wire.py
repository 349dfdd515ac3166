"""Messages as bytes: msgpack with numpy arrays, as openpi packs them, inside limits that hold before memory is taken.

    {b"__ndarray__": True, b"data": bytes, b"dtype": "|u1", b"shape": [rows, ...]}     openpi-client: written and read
    {b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"}                             openpi-client's numpy scalars: read
    {"__ndarray__": True, "data": bytes, ...}                                           the same with names as text: read
    {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [...], b"data": bytes}        msgpack-numpy of PyPI: read

Whoever sends is not trusted: dtypes and sizes are on a list, the byte count must be the product of the shape, nothing is
unpickled, and a decoded array is a view of the message that was received already, unless its bytes are in another order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import msgpack
import numpy as np

from rfedge.arrays import Array
from rfedge.errors import ContractError

# dtype.str of the arrays that are written: pixels and numbers, little-endian.
ALLOWED_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "|u1": np.dtype(np.uint8),
    "<f4": np.dtype(np.float32),
    "<f8": np.dtype(np.float64),
}
# Of the arrays that are read: what a field has to be is said by whoever knows the field.
READ_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    f"{order}{kind}": np.dtype(f"{order}{kind}")
    for kind in ("u1", "i1", "b1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
    for order in ("|<>" if kind.endswith("1") else "<>")
}
# The keys of an array, and the key that says so, in the dialects that are read; names as bytes and as text.
_ARRAY_KEYS: Final = frozenset(("__ndarray__", "data", "dtype", "shape"))
_SCALAR_KEYS: Final = frozenset(("__npgeneric__", "data", "dtype"))
_PYPI_KEYS: Final = frozenset(("nd", "type", "kind", "shape", "data"))
_PYPI_SCALAR_KEYS: Final = frozenset(("nd", "type", "data"))
# A header of four bytes can ask for a list of 2**32 places, and lists can nest: both are bounded before allocation.
MAX_MAP_ITEMS: Final = 32
MAX_LIST_ITEMS: Final = 64
MAX_DEPTH: Final = 3  # maps and lists inside each other, the message itself counted
MAX_AXES: Final = 4
MAX_AXIS: Final = 4096
# What a failed request was: it came too late, did not fit, was no message at all, broke the policy, or the server ends.
ERROR_KINDS: Final = ("late", "refused", "malformed", "internal", "stopping")
_MOST_HONEST_ITEMS: Final = 1 << 16
_REMEDY: Final = "Pack a map of strings to scalars and arrays as openpi-client does."


class MalformedError(ContractError):
    """The bytes are no message of this codec: whatever follows in the stream was packed by the same hand."""


def pack(message: Mapping[str, Any]) -> bytes:
    """Pack one message: names to None, bool, int, float, str, lists or maps of these, and arrays of `ALLOWED_DTYPES`.

    Raises:
        ContractError: an array has another dtype.
        TypeError: another type of value.
    """
    packed = msgpack.packb(message, default=_pack_array)
    assert isinstance(packed, bytes)
    return packed


def unpack(data: bytes) -> dict[str, Any]:
    """Unpack one message; its arrays are read-only views of `data`'s parts. Raises MalformedError where it is not one
    msgpack map, lies about a size or exceeds a limit, and ContractError for a value that is not read; the text says which.
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
        long_list = re.match(r"(\d+) exceeds max_array_len", words)
        if long_list is not None and int(long_list[1]) <= _MOST_HONEST_ITEMS:
            most = f"at most {MAX_LIST_ITEMS}: images and states as arrays"
            raise _refused(f"a list of {long_list[1]} items", most) from None
        raise _malformed(words, "one msgpack map") from None
    if not isinstance(message, dict) or _dialect(message) is not None:
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
            raise ContractError("array", got=f"dtype {value.dtype}", expected=f"one of {_dtype_names()}", remedy="Cast it.")
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": list(value.shape)}
    raise TypeError(f"cannot pack a {type(value).__name__}")


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")


def _check(value: Any, depth: int, name: str = "message") -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth > MAX_DEPTH:
        raise _malformed(f"more than {MAX_DEPTH} levels", f"at most {MAX_DEPTH} levels of maps and lists")
    if isinstance(value, list):
        return [_check(item, depth + 1, name) for item in value]
    if isinstance(value, dict):
        dialect = _dialect(value)
        if dialect is not None:
            return _read(name, dialect, {_text(key): item for key, item in value.items()})
        for key in value:
            if not isinstance(key, str):
                raise _refused(f"key {key[:40]!r}", "names as strings")
        return {key: _check(item, depth + 1, key[:60]) for key, item in value.items()}
    raise _refused(f"{name}: a value of type {type(value).__name__}", "scalars, strings, lists, maps and arrays")


def _text(key: str | bytes) -> str:
    return key if isinstance(key, str) else key.decode(errors="replace")


def _dialect(value: Mapping[str | bytes, Any]) -> str | None:
    """Return the key that says that a map is an array or a numpy scalar, or None."""
    for key in ("__ndarray__", "__npgeneric__", "nd"):
        if key in value or key.encode() in value:
            return None if key == "nd" and not {"type", b"type"} & value.keys() else key
    return None


def _read(name: str, dialect: str, fields: dict[str, Any]) -> Any:
    if dialect == "__npgeneric__":
        value = fields.get("data")
        if fields.keys() != _SCALAR_KEYS or not isinstance(value, (bool, int, float, str)):
            raise _refused(f"{name}: a numpy scalar with keys {sorted(fields)}"[:200], f"{sorted(_SCALAR_KEYS)}")
        return value
    if dialect == "nd":
        is_array = fields["nd"] is True
        fits = is_array or fields["nd"] is False
        fits = fits and fields.keys() == (_PYPI_KEYS if is_array else _PYPI_SCALAR_KEYS)
        if not fits or fields.get("kind", b"") not in (b"", ""):
            raise _refused(f"{name}: an array with keys {sorted(fields)}"[:200], "one of plain numbers")
        kind = fields["type"]
        array = _array(name, _text(kind) if isinstance(kind, bytes) else kind, fields.get("shape", []), fields["data"])
        return array if is_array else array.item()
    if fields.keys() != _ARRAY_KEYS or fields["__ndarray__"] is not True:
        raise _malformed(f"an array with keys {sorted(fields)}"[:200], f"{sorted(_ARRAY_KEYS)}")
    return _array(name, fields["dtype"], fields["shape"], fields["data"])


def _array(field: str, name: object, shape: object, data: object) -> Array:
    dtype = READ_DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise _refused(f"{field}: an array of dtype {str(name)[:20]!r}", f"one of {_dtype_names()}")
    # `type() is int`: True is an int too. Python's integers do not overflow in the product.
    if not (isinstance(shape, list) and len(shape) <= MAX_AXES and all(type(n) is int and 0 < n <= MAX_AXIS for n in shape)):
        raise _malformed(f"an array of shape {str(shape)[:60]}", f"up to {MAX_AXES} axes of 1 to {MAX_AXIS}")
    expected = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != expected:
        size = f"{len(data)} bytes" if isinstance(data, bytes) else f"a {type(data).__name__}"
        raise _malformed(f"an array of shape {tuple(shape)} in {size}", f"{expected} bytes")
    array: Array = np.frombuffer(data, dtype=dtype)
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
        array.flags.writeable = False
    return array.reshape(shape)


def _dtype_names() -> str:
    return ", ".join(str(dtype) for dtype in ALLOWED_DTYPES.values())


def _refused(got: str, expected: str) -> ContractError:
    return ContractError("message", got=got, expected=expected, remedy=_REMEDY)


def _malformed(got: str, expected: str) -> MalformedError:
    return MalformedError("message", got=got, expected=expected, remedy=_REMEDY)
