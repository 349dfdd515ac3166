"""Protocol Buffers' wire format, as much of it as ONNX files need, so that a robot can do without the `onnx` package.

Source: protobuf.dev, "Encoding"; field numbers: onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

__all__ = ["Value", "WireError", "encode_bytes", "encode_varint_field", "fields", "packed_varints", "signed", "text"]

Value = int | memoryview

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH: Final = 2
_FIXED32: Final = 5


class WireError(ValueError):
    """These bytes are no protobuf message."""


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Yield (field number, value) in file order: integers as int, everything with a length as a view of its bytes.

    Raises:
        WireError: the message is cut short or uses a wire type that protobuf has given up.
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == _LENGTH:
            length, position = _varint(message, position)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise WireError(f"wire type {wire_type} at byte {position}")
        if position + length > len(message):
            raise WireError(f"field {number} ends after the message")
        yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    result = shift = 0
    while position < len(message) and shift < 70:
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
    raise WireError(f"a number that does not end at byte {position}")


def packed_varints(value: Value) -> list[int]:
    """Return the integers of a repeated field: one where it was not packed, all of them where it was."""
    if isinstance(value, int):
        return [value]
    numbers, position = [], 0
    while position < len(value):
        number, position = _varint(value, position)
        numbers.append(number)
    return numbers


def signed(value: int) -> int:
    """Return an int64 from its 64-bit two's complement, as protobuf writes negative numbers."""
    return value - (1 << 64) if value >= 1 << 63 else value


def text(value: Value) -> str:
    """Return the string of a field.

    Raises:
        WireError: the field holds a number.
        UnicodeDecodeError: its bytes are no UTF-8.
    """
    if isinstance(value, int):
        raise WireError("a number in place of text")
    return bytes(value).decode()


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_varint_field(number: int, value: int) -> bytes:
    """Return one integer field; `value` is not negative."""
    return _encode_varint(number << 3 | _VARINT) + _encode_varint(value)


def encode_bytes(number: int, *parts: bytes) -> bytes:
    """Return one field that holds the `parts` in a row: a string, bytes or a message."""
    content = b"".join(parts)
    return _encode_varint(number << 3 | _LENGTH) + _encode_varint(len(content)) + content
