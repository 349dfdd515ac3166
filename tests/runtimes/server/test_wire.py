"""The codec alone: what it carries, and that nothing hostile gets further than one ContractError."""

import contextlib
import struct
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfedge.errors import ContractError
from rfedge.runtimes.server.wire import ALLOWED_DTYPES, MalformedError, error_line, pack, parse_error_line, unpack
from tests.errors import raises


def array(**changes: Any) -> dict[bytes, Any]:
    return {b"__ndarray__": True, b"data": bytes(12), b"dtype": "|u1", b"shape": [2, 2, 3]} | {
        key.encode(): value for key, value in changes.items()
    }


def refusal(data: bytes) -> str:
    with pytest.raises(ContractError) as error:
        unpack(data)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    return str(error.value)


@pytest.mark.parametrize("dtype", ALLOWED_DTYPES.values())
def test_arrays_come_back_bit_for_bit(dtype: np.dtype[Any]) -> None:
    image = (np.random.default_rng(0).random((5, 4, 3)) * 255).astype(dtype)
    plain = {"text": "drawer", "n": 3, "list": [1.5, None], "map": {"b": True}}
    back = unpack(pack({"image": image, "strided": image[::2, ::-1], **plain}))
    np.testing.assert_array_equal(back["image"], image)
    np.testing.assert_array_equal(back["strided"], image[::2, ::-1])
    assert back["image"].dtype == dtype
    assert not back["image"].flags.writeable
    assert {key: back[key] for key in plain} == plain


def test_an_array_is_packed_as_openpi_packs_it() -> None:
    packed = pack({"x": np.arange(6, dtype=np.float32).reshape(2, 3)})
    assert msgpack.unpackb(packed)["x"] == {
        b"__ndarray__": True,
        b"data": np.arange(6, dtype=np.float32).tobytes(),
        b"dtype": "<f4",
        b"shape": [2, 3],
    }


@pytest.mark.parametrize(
    "bad", [np.array([object()]), np.array([1j]), np.zeros(2, "i4"), np.array(["a"]), np.zeros(2, ">f4")]
)
def test_other_dtypes_are_not_packed(bad: np.ndarray[Any, Any]) -> None:
    with raises(ContractError, "array", got="dtype..."):
        pack({"x": bad})
    with pytest.raises(TypeError, match="cannot pack a set"):
        pack({"x": {1}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "|O"}, "dtype '|O', expected one of uint8, float32, float64"),
        ({"dtype": "|V8"}, "dtype '|V8'"),
        ({"dtype": "O8"}, "dtype 'O8'"),
        ({"dtype": "<f2,(1000000000,)u1"}, "dtype '<f2,(1000000000,)u1'"),
        ({"dtype": ["<f4"]}, "dtype"),
        ({"dtype": b"|u1"}, "dtype"),
        ({"dtype": None}, "dtype 'None'"),
        ({"shape": [-1, -12]}, "shape [-1, -12]"),
        ({"shape": [2, -1]}, "shape [2, -1]"),
        ({"shape": [0]}, "shape [0]"),
        ({"shape": []}, "in 12 bytes, expected 1 bytes"),
        ({"shape": [2**63, 2**63]}, "shape"),
        ({"shape": [4096] * 4}, "expected 281474976710656 bytes"),
        ({"shape": [2.0, 6]}, "shape [2.0, 6]"),
        ({"shape": [True, 12]}, "shape [True, 12]"),
        ({"shape": [1] * 5}, "shape"),
        ({"shape": 12}, "shape 12"),
        ({"shape": [2, 2, 4]}, "an array of shape (2, 2, 4) in 12 bytes, expected 16 bytes"),
        ({"data": "text"}, "in a str"),
        ({"data": None}, "in a NoneType"),
        ({"data": list(range(12))}, "in a list"),
        ({"__ndarray__": 1}, "an array with keys"),
        ({"extra": 1}, "an array with keys"),
    ],
)
def test_arrays_that_lie_are_refused(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(msgpack.packb({"x": array(**changes)}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",  # never used
        b"\x81\xa1a",  # a map without its value
        msgpack.packb({"a": 1}) + b"\x00",
        msgpack.packb([1, 2]),
        msgpack.packb(None),
        msgpack.packb(array()),
        msgpack.packb({1: 2}),
        msgpack.packb({b"a": 2}),
        msgpack.packb({"a": b"bytes"}),
        msgpack.packb({"a": {b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}}),
        msgpack.packb({"a": {b"nd": True, b"type": "<f4", b"kind": b"O", b"shape": [1], b"data": bytes(4)}}),
        msgpack.packb({"a": {b"nd": 2, b"type": "<f4", b"kind": b"", b"shape": [1], b"data": bytes(4)}}),
        msgpack.packb({"a": {b"nd": True, b"type": "|O", b"kind": b"", b"shape": [1], b"data": bytes(8)}}),
        msgpack.packb({"a": {b"nd": False, b"type": "<f4", b"data": bytes(9)}}),
        msgpack.packb({"a": {b"complex": True, b"data": "1j"}}),
        msgpack.packb({"a": msgpack.ExtType(5, b"x")}),
        msgpack.packb({"a": msgpack.Timestamp(1, 2)}),
        msgpack.packb({"a": [[[[1]]]]}),
        msgpack.packb({str(n): n for n in range(33)}),
        msgpack.packb({"a": list(range(65))}),
        b"\x81\xa1a\xa2\xff\xfe",  # a string that is not UTF-8
        b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",  # an extension of 4 GB
        b"\x81\xa1a\xc6\xff\xff\xff\xff",  # bytes of 4 GB
        b"\x81\xa1a\xdd\xff\xff\xff\xff",  # a list of 4 G places
        b"\xdf\xff\xff\xff\xff",  # a map of 4 G places
        b"\x91" * 100_000,  # lists in lists
        b"\x81\xa1a" * 50_000,  # maps in maps
    ],
)
def test_what_is_no_message_is_one_sentence(data: bytes) -> None:
    assert refusal(data).startswith("message: got ")


def test_a_small_message_takes_little_memory() -> None:
    """Lists that each announce the most places that the rest of the message could fill, inside each other."""
    bombs = [
        b"".join(b"\xdd" + struct.pack(">I", 200_000 - depth) for depth in range(500)) + bytes(200_000),
        b"".join(b"\xdc" + struct.pack(">H", 64) for _ in range(1000)) + bytes(1000),
        b"\xdf" + struct.pack(">I", 90_000) + b"\xa1a\xc0" * 90_000,
    ]
    tracemalloc.start()
    try:
        for bomb in bombs:
            tracemalloc.reset_peak()
            refusal(bomb)
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_map_or_a_refusal(data: bytes) -> None:
    with contextlib.suppress(ContractError):
        assert isinstance(unpack(data), dict)


_texts = st.text(max_size=8)
_leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | _texts | st.binary(max_size=8)
_shapes = st.lists(st.integers(-5, 5000), max_size=5) | _leaves
_keys = st.text(max_size=4) | st.binary(max_size=4)
_values = st.recursive(
    _leaves | st.builds(array, dtype=_leaves, shape=_shapes, data=_leaves),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(_values)
def test_any_msgpack_is_plain_values_or_a_refusal(value: Any) -> None:
    def check(item: Any) -> None:
        assert item is None or isinstance(item, (bool, int, float, str, list, dict, np.ndarray))
        for inner in item if isinstance(item, list) else item.values() if isinstance(item, dict) else ():
            check(inner)

    try:
        check(unpack(msgpack.packb({"x": value})))
    except ContractError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most values are fine


def test_error_lines() -> None:
    assert error_line("late", "request:\n got  4 ms") == "late: request: got 4 ms"
    assert parse_error_line("late: request: got 4 ms") == ("late", "request: got 4 ms")
    assert parse_error_line("Traceback: of another server") == ("internal", "Traceback: of another server")


def openpi(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def as_text(value: Any) -> Any:
    return {key.decode(): item for key, item in openpi(value).items()}


def pypi(value: Any) -> Any:
    """What msgpack-numpy 0.4.8 makes of arrays and scalars."""
    if isinstance(value, np.ndarray):
        return {b"nd": True, b"type": value.dtype.str, b"kind": b"", b"shape": value.shape, b"data": value.tobytes()}
    return {b"nd": False, b"type": value.dtype.str, b"data": value.tobytes()}


@pytest.mark.parametrize("dialect", [openpi, as_text, pypi])
@pytest.mark.parametrize("dtype", ["|u1", "<f4", "<f8", "<f2", "<i8", "<i4", ">f4", ">i2", "|b1"])
def test_every_dialect_and_plain_dtype_is_read(dialect: Any, dtype: str) -> None:
    array = (np.random.default_rng(0).random((5, 4, 3)) * 255).astype(dtype)
    scalar = array.dtype.newbyteorder("=").type(array[0, 0, 0])
    back = unpack(msgpack.packb({"image": array, "n": scalar, "plain": 1}, default=dialect))
    np.testing.assert_array_equal(back["image"], array)
    assert back["image"].dtype == array.dtype.newbyteorder("=")
    assert not back["image"].flags.writeable
    assert (back["n"], back["plain"]) == (scalar.item(), 1)
    assert not isinstance(back["n"], np.generic)


def test_what_is_not_read_is_named_and_ends_nothing() -> None:
    nested = np.zeros((200, 200, 3), np.uint8).tolist()
    for value, words in (
        (array(dtype="<c8"), "message: got x: an array of dtype '<c8', expected one of uint8, float32, float64"),
        (b"bytes", "message: got x: a value of type bytes"),
        (nested, "message: got a list of 200 items, expected at most 64: images and states as arrays"),
        ({b"nd": True, b"type": "<f4", b"kind": b"O", b"shape": [1], b"data": b""}, "message: got x: an array with keys"),
    ):
        with pytest.raises(ContractError) as error:
            unpack(msgpack.packb({"x": value}))
        assert words in str(error.value)
        assert not isinstance(error.value, MalformedError)
    for data in (b"", b"\xc1", msgpack.packb({"x": array(shape=[2, 2, 4])}), b"\x81\xa1a\xdd\xff\xff\xff\xff"):
        with pytest.raises(MalformedError):
            unpack(data)
