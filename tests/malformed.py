"""Messages that a policy server must survive: broken, lying, oversized, cut off, or from nobody it knows.

Each kind sends one thing over a socket of its own, written by hand where a websocket library would refuse to send it.
Everything is sampled from the generator that is passed in.
"""

import base64
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import msgpack
import numpy as np

from rfedge.messages import GRIPPER_IMAGE_SHAPE, STATIC_IMAGE_SHAPE

__all__ = ["KINDS", "Target", "enter", "masked_frame", "send_malformed"]

REPLY_TIMEOUT_S: Final = 10.0
MAX_REPLY_BYTES: Final = 1 << 16
_TEXT, _BINARY, _PING = 1, 2, 9
_RSV1: Final = 0x40  # "this frame is compressed", which the server has not agreed to


@dataclass(frozen=True, slots=True)
class Target:
    """A server under attack.

    Attributes:
        url: ws://HOST:PORT.
        token: what it asks for, or None.
        max_message_bytes: what it says is too much.
    """

    url: str
    token: str | None
    max_message_bytes: int


def send_malformed(target: Target, kind: str, rng: np.random.Generator) -> bytes:
    """Do what `kind`, one of `KINDS`, says, on a new connection, and return what came back before it ended.

    Raises:
        ConnectionRefusedError: nobody listens any more.
        TimeoutError: the server neither answered nor hung up.
    """
    with _connect(target) as opened:
        return KINDS[kind](opened, target, rng)


Attack = Callable[[socket.socket, Target, np.random.Generator], bytes]


def _connect(target: Target) -> socket.socket:
    parts = urlsplit(target.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=REPLY_TIMEOUT_S)


def _request_head(target: Target, path: str = "/", token: str | None = None, *extra: str) -> bytes:
    key = base64.b64encode(bytes(16)).decode()
    lines = [f"GET {path} HTTP/1.1", f"Host: {urlsplit(target.url).netloc}", "Upgrade: websocket", "Connection: Upgrade"]
    lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", *extra]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def enter(opened: socket.socket, target: Target) -> None:
    """Open a websocket and read the server's greeting."""
    opened.sendall(_request_head(target, "/", target.token))
    received = b""
    while b"\r\n\r\n" not in received:
        received += _more(opened)
    head, _, received = received.partition(b"\r\n\r\n")
    if b" 101 " not in head.split(b"\r\n")[0]:
        raise ConnectionRefusedError(head.split(b"\r\n")[0].decode(errors="replace"))
    while len(received) < 4 or len(received) < 4 + struct.unpack(">H", received[2:4])[0]:
        received += _more(opened)  # the greeting is longer than 125 bytes: a length of two bytes follows


def _more(opened: socket.socket) -> bytes:
    data = opened.recv(65536)
    if not data:
        raise ConnectionResetError("the server hung up during the handshake")
    return data


def masked_frame(
    payload: bytes, *, opcode: int = _BINARY, first: int = 0x80, length: int | None = None, masked: bool = True
) -> bytes:
    size = len(payload) if length is None else length
    mask_bit = 0x80 if masked else 0
    if size < 126:
        head = bytes([first | opcode, mask_bit | size])
    elif size < 1 << 16:
        head = bytes([first | opcode, mask_bit | 126]) + struct.pack(">H", size)
    else:
        head = bytes([first | opcode, mask_bit | 127]) + struct.pack(">Q", size)
    return head + (bytes(4) if masked else b"") + payload


def _exchange(opened: socket.socket, data: bytes) -> bytes:
    """Send and return the first reply; b"" when the server hung up."""
    try:
        opened.sendall(data)
        return opened.recv(MAX_REPLY_BYTES)
    except (BrokenPipeError, ConnectionResetError):
        return b""


def _hear_out(opened: socket.socket) -> bytes:
    """Return everything until the server hangs up."""
    heard = b""
    try:
        while (data := opened.recv(MAX_REPLY_BYTES)) and len(heard) < MAX_REPLY_BYTES:
            heard += data
    except ConnectionResetError:
        pass
    return heard


def _message(make: Callable[[np.random.Generator], bytes]) -> Attack:
    """An attack by one binary message inside a proper connection."""

    def attack(opened: socket.socket, target: Target, rng: np.random.Generator) -> bytes:
        enter(opened, target)
        return _exchange(opened, masked_frame(make(rng)))

    return attack


def _array(rng: np.random.Generator, shape: tuple[int, ...]) -> dict[bytes, Any]:
    data = rng.integers(0, 256, int(np.prod(shape)), dtype=np.uint8).tobytes()
    return {b"__ndarray__": True, b"data": data, b"dtype": "|u1", b"shape": list(shape)}


def _good(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "observation/image": _array(rng, STATIC_IMAGE_SHAPE),
        "observation/wrist_image": _array(rng, GRIPPER_IMAGE_SHAPE),
        "prompt": "push the button",
    }


def _pack(message: object) -> bytes:
    packed = msgpack.packb(message)
    assert isinstance(packed, bytes)
    return packed


def _noise(rng: np.random.Generator) -> bytes:
    return rng.bytes(int(rng.integers(0, 2000)))


def _mutated(rng: np.random.Generator) -> bytes:
    """A good message with bytes changed, cut off, doubled or put in, mostly in the parts that are not pixels."""
    data = bytearray(_pack(_good(rng)))
    for _ in range(int(rng.integers(1, 6))):
        place = int(rng.integers(0, 120)) if rng.random() < 0.8 else int(rng.integers(0, len(data)))
        choice = rng.integers(0, 4)
        if choice == 0:
            data[place] = int(rng.integers(0, 256))
        elif choice == 1:
            del data[place : place + int(rng.integers(1, 40))]
        elif choice == 2:
            data[place:place] = rng.bytes(int(rng.integers(1, 9)))
        else:
            del data[int(rng.integers(120, len(data))) :]
    return bytes(data)


def _lying_array(rng: np.random.Generator) -> bytes:
    lies: list[tuple[bytes, Any]] = [
        (b"dtype", "|O"),
        (b"dtype", "<M8[ns]"),
        (b"dtype", "|V999999999"),
        (b"dtype", "<f4,(99999999,)<f8"),
        (b"shape", [-1, 3]),
        (b"shape", [2**40, 2**40]),
        (b"shape", [4096, 4096, 4096]),
        (b"shape", [200, 200, 4]),
        (b"shape", [0]),
        (b"shape", "200"),
        (b"data", b""),
        (b"data", None),
        (b"__ndarray__", "yes"),
    ]
    message = _good(rng)
    key, value = lies[int(rng.integers(len(lies)))]
    message["observation/image"][key] = value
    return _pack(message)


def _wrong_fields(rng: np.random.Generator) -> bytes:
    shapes = [(224, 224, 3), (3, 200, 200), (200, 200), (1, 1, 3), (200, 199, 3), (84, 84, 3)]
    changes: list[dict[str, Any]] = [
        {"observation/image": _array(rng, shapes[int(rng.integers(len(shapes)))])},
        {"observation/image": [1, 2, 3]},
        {"observation/wrist_image": None},
        {"prompt": "x" * 5000},
        {"prompt": 7},
        {"prompt": ""},
        {"deadline_ms": -5},
        {"reset": "yes"},
        {"__reduce__": "os.system"},
    ]
    return _pack(_good(rng) | changes[int(rng.integers(len(changes)))])


def _nested(rng: np.random.Generator) -> bytes:
    opening = (b"\x91", b"\x81\xa1a", b"\xdd\x00\x03\x00\x00", b"\xdf\x00\x03\x00\x00\xa1a")[int(rng.integers(4))]
    return opening * int(rng.integers(10, 20_000)) + bytes(int(rng.integers(0, 1000)))


def _huge_lengths(rng: np.random.Generator) -> bytes:
    codes = (b"\xc9", b"\xc6", b"\xdb", b"\xdd", b"\xdf")  # extension, bytes, string, list, map: lengths of four bytes
    size = struct.pack(">I", int(rng.integers(1 << 16, 1 << 32)))
    return b"\x81\xa1a" + codes[int(rng.integers(len(codes)))] + size + rng.bytes(int(rng.integers(0, 64)))


def _no_handshake(opened: socket.socket, target: Target, rng: np.random.Generator) -> bytes:
    lines = [
        rng.bytes(300),
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
    ]
    data = lines[int(rng.integers(len(lines)))]
    return _exchange(opened, data + b"\r\n\r\n")


def _wrong_token(opened: socket.socket, target: Target, rng: np.random.Generator) -> bytes:
    tokens = [None, "", "x" * 2000, rng.bytes(24).hex(), "\xff\xfe"]
    return _exchange(opened, _request_head(target, "/", tokens[int(rng.integers(len(tokens)))]))


def _wrong_path(opened: socket.socket, target: Target, rng: np.random.Generator) -> bytes:
    paths = ["/../../etc/passwd", "/?token=x", "//", "/admin", "/metrics/../healthz", "*"]
    return _exchange(opened, _request_head(target, paths[int(rng.integers(len(paths)))], target.token))


def _web_page(opened: socket.socket, target: Target, rng: np.random.Generator) -> bytes:
    return _exchange(opened, _request_head(target, "/", target.token, f"Origin: http://{rng.bytes(4).hex()}.example"))


def _half_closed(opened: socket.socket, target: Target, rng: np.random.Generator) -> bytes:
    """Say half of something and shut the sending side: in the handshake, in a frame, or after the greeting."""
    choice = rng.integers(0, 3)
    if choice == 0:
        opened.sendall(_request_head(target, "/", target.token)[: int(rng.integers(1, 60))])
    else:
        enter(opened, target)
        if choice == 1:
            data = masked_frame(_pack(_good(rng)))
            opened.sendall(data[: int(rng.integers(1, 5000))])
    opened.shutdown(socket.SHUT_WR)
    return _hear_out(opened)


def _reset(opened: socket.socket, target: Target, rng: np.random.Generator) -> bytes:
    """Vanish with a TCP reset in the middle of a message."""
    enter(opened, target)
    data = masked_frame(_pack(_good(rng)))
    opened.sendall(data[: int(rng.integers(1, len(data) + 1))])
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return b""


def _oversize(opened: socket.socket, target: Target, rng: np.random.Generator) -> bytes:
    """Announce more than is allowed, in one frame or in pieces of which none is too large."""
    enter(opened, target)
    if rng.random() < 0.5:
        return _exchange(opened, masked_frame(bytes(64), length=int(rng.integers(target.max_message_bytes + 1, 1 << 62))))
    piece = target.max_message_bytes // 3 + 1
    pieces = [masked_frame(bytes(piece), first=0)] + [masked_frame(bytes(piece), opcode=0, first=0)] * 3
    return _exchange(opened, b"".join(pieces))


def _bad_frame(opened: socket.socket, target: Target, rng: np.random.Generator) -> bytes:
    enter(opened, target)
    frames = [
        masked_frame(b"\x80", masked=False),
        masked_frame(b"\x80", opcode=5),
        masked_frame(bytes(200), opcode=_PING),
        masked_frame(b"\x80", opcode=0),
        masked_frame(b"\xff\xfe", opcode=_TEXT),
        masked_frame(b"words", opcode=_TEXT),
        masked_frame(b"\x80", first=0x80 | _RSV1),
        masked_frame(bytes(1000), first=0x80 | _RSV1),
    ]
    return _exchange(opened, frames[int(rng.integers(len(frames)))])


def _request(change: Callable[[bytes, np.random.Generator], bytes]) -> Attack:
    """An attack by one HTTP request, made of a good one."""

    def attack(opened: socket.socket, target: Target, rng: np.random.Generator) -> bytes:
        return _exchange(opened, change(_request_head(target, "/", target.token), rng))

    return attack


def _frames(make: Callable[[np.random.Generator], bytes]) -> Attack:
    """An attack by frames of any kind inside a proper connection."""

    def attack(opened: socket.socket, target: Target, rng: np.random.Generator) -> bytes:
        enter(opened, target)
        return _exchange(opened, make(rng))

    return attack


def _foreign_host(head: bytes, rng: np.random.Generator) -> bytes:
    hosts = (b"evil.example", b"127.0.0.1.evil.example:80", b"", b"\xff", rng.bytes(4).hex().encode() + b".example")
    line = next(line for line in head.split(b"\r\n") if line.startswith(b"Host: "))
    return head.replace(line, b"Host: " + hosts[int(rng.integers(len(hosts)))])


def _bad_key(head: bytes, rng: np.random.Generator) -> bytes:
    line = next(line for line in head.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: "))
    return head.replace(line, b"Sec-WebSocket-Key: " + rng.bytes(int(rng.integers(0, 20))).hex().encode())


def _silent(opened: socket.socket, target: Target, rng: np.random.Generator) -> bytes:
    """Connect and leave: with a word or none, with a farewell or a reset."""
    if rng.random() < 0.5:
        opened.sendall(b"G")
    if rng.random() < 0.5:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return b""


def _not_finite(rng: np.random.Generator) -> bytes:
    values = (np.nan, np.inf, -np.inf, 1e308)
    state = np.full(15, values[int(rng.integers(len(values)))]).tobytes()
    return _pack(_good(rng) | {"observation/state": {b"__ndarray__": True, b"data": state, b"dtype": "<f8", b"shape": [15]}})


def _odd_numbers(rng: np.random.Generator) -> bytes:
    values: list[Any] = [np.inf, np.nan, 0, -1e308, 2**63, "soon", [], {}]
    return _pack(_good(rng) | {"deadline_ms": values[int(rng.integers(len(values)))]})


def _odd_words(rng: np.random.Generator) -> bytes:
    words = ["\0" * 9, " " * 100, "a" * 513, "\u202e" * 600, "\n" * 5]
    return _pack(_good(rng) | {"prompt": words[int(rng.integers(len(words)))]})


KINDS: Final[dict[str, Attack]] = {
    "no-handshake": _no_handshake,
    "wrong-token": _wrong_token,
    "wrong-path": _wrong_path,
    "web-page": _web_page,
    "half-closed": _half_closed,
    "reset": _reset,
    "oversize": _oversize,
    "bad-frame": _bad_frame,
    "noise": _message(_noise),
    "mutated": _message(_mutated),
    "lying-array": _message(_lying_array),
    "wrong-fields": _message(_wrong_fields),
    "nested": _message(_nested),
    "huge-lengths": _message(_huge_lengths),
    "silent": _silent,
    "foreign-host": _request(_foreign_host),
    "bad-key": _request(_bad_key),
    "wrong-method": _request(lambda head, rng: head.replace(b"GET", (b"POST", b"HEAD", b"PRI")[int(rng.integers(3))], 1)),
    "old-http": _request(lambda head, rng: head.replace(b"HTTP/1.1", b"HTTP/1.0", 1)),
    "many-headers": _request(lambda head, rng: head[:-2] + b"X: y\r\n" * int(rng.integers(200, 2000)) + b"\r\n"),
    "long-path": _request(lambda head, rng: head.replace(b" / ", b" /" + b"a" * int(rng.integers(9000, 30_000)) + b" ", 1)),
    "two-tokens": _request(lambda head, rng: head[:-2] + b"Authorization: Bearer x\r\nAuthorization: y\r\n\r\n"),
    "pings": _frames(lambda rng: masked_frame(bytes(125), opcode=_PING) * int(rng.integers(1, 400))),
    "pongs": _frames(lambda rng: masked_frame(bytes(125), opcode=10) * 50 + masked_frame(b"")),
    "pieces": _frames(lambda rng: masked_frame(b"", first=0) + masked_frame(b"", opcode=0, first=0) * 400),
    "odd-closing": _frames(lambda rng: masked_frame(struct.pack(">H", int(rng.integers(0, 1000))), opcode=8)),
    "empty": _frames(lambda rng: masked_frame(b"")),
    "not-finite": _message(_not_finite),
    "odd-numbers": _message(_odd_numbers),
    "odd-words": _message(_odd_words),
}
