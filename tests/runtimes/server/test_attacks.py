"""The server against those who mean it no good: over real sockets, and a good client is served after each."""

import logging
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from rfedge.errors import ConfigError
from rfedge.runtimes import EdgePolicy
from rfedge.runtimes.server.client import RemotePolicy
from rfedge.runtimes.server.metrics import ServerMetrics
from rfedge.runtimes.server.security import check_exposure, is_authorised, is_loopback, read_token, tls_context
from rfedge.runtimes.server.sockets import MAX_WAITING_PER_ADDRESS, SocketGate
from rfedge.runtimes.server.wire import pack
from tests.errors import raises
from tests.malformed import KINDS, Target, enter, masked_frame, send_malformed
from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle
from tests.runtimes.server.running_server import (
    GatedPolicy,
    ask,
    client,
    frame,
    get,
    metric,
    raw_socket,
    receive,
    request,
    running,
)

TOKEN = "0123456789abcdef0123456789abcdef"
AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}
MAX_BYTES = 300_000


def good_client(url: str) -> None:
    with client(url, additional_headers=AUTHORISED) as connection:
        assert isinstance(ask(connection, request(frame(0), "open the drawer")), dict)


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_client_is_served_after_malformed_ones(
    kind: str, policy: GatedPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    rng = np.random.default_rng(0)
    with running(policy, token=TOKEN, max_message_bytes=MAX_BYTES, handshake_timeout_s=2.0) as (_, url):
        good_client(url)
        for _ in range(12):
            send_malformed(Target(url, TOKEN, MAX_BYTES), kind, rng)
        good_client(url)
        _wait_until_empty(url)
    assert caplog.text == ""  # nothing that a stranger sends is a fault of ours


EXPECTED = {
    "wrong-token": b"HTTP/1.1 401 ",
    "wrong-path": b"HTTP/1.1 404 ",
    "web-page": b"HTTP/1.1 403 ",
    "noise": b"malformed: message: got ",
    "lying-array": b"ed: message: got ",  # an unknown dtype is refused, a wrong size is malformed
    "nested": b"malformed: message: got ",
    "huge-lengths": b"malformed: message: got ",
    "wrong-fields": b"refused: ",
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_sender_is_told_in_one_line(kind: str, policy: GatedPolicy) -> None:
    rng = np.random.default_rng(1)
    with running(policy, token=TOKEN, max_message_bytes=MAX_BYTES) as (_, url):
        for _ in range(8):
            reply = send_malformed(Target(url, TOKEN, MAX_BYTES), kind, rng)
            assert EXPECTED[kind] in reply, reply
            assert b"Traceback" not in reply


@pytest.mark.slow
def test_nothing_leaks_over_thousands_of_malformed_messages(policy: GatedPolicy) -> None:
    rng, names, process = np.random.default_rng(2), list(KINDS), psutil.Process()
    with running(policy, token=TOKEN, max_message_bytes=MAX_BYTES, handshake_timeout_s=2.0) as (_, url):
        target = Target(url, TOKEN, MAX_BYTES)
        for index in range(600):
            send_malformed(target, names[index % len(names)], rng)
        _wait_until_empty(url)
        rss_bytes, num_files, num_threads = process.memory_info().rss, process.num_fds(), process.num_threads()
        for index in range(6000):
            send_malformed(target, names[index % len(names)], rng)
        good_client(url)
        _wait_until_empty(url)
        deadline_s = time.monotonic() + 10  # the last sockets are still being closed; what leaked stays
        while process.num_fds() > num_files or process.num_threads() > num_threads:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert process.memory_info().rss - rss_bytes < 8 << 20


def test_tokens_as_bearer_and_as_openpis_api_key(policy: GatedPolicy) -> None:
    with running(policy, token=TOKEN) as (_, url):
        for header in (f"Bearer {TOKEN}", f"Api-Key {TOKEN}", f"bearer {TOKEN}"):
            with client(url, additional_headers={"Authorization": header}) as connection:
                assert isinstance(ask(connection, request(frame(0), "open the drawer")), dict)
        for header in (f"Basic {TOKEN}", TOKEN, "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", ""):
            with pytest.raises(InvalidStatus) as error, client(url, additional_headers={"Authorization": header}):
                pass
            assert error.value.response.status_code == 401
            assert error.value.response.headers["WWW-Authenticate"] == "Bearer"
        twice = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer other")]
        with pytest.raises(InvalidStatus, match="401"), client(url, additional_headers=twice):
            pass
        assert get(url, "/healthz") == (200, "OK\n")
        assert get(url, "/metrics")[0] == 401
        assert "rfedge_connections" in get(url, "/metrics", AUTHORISED)[1]
        assert get(url, f"/?token={TOKEN}")[0] == 404


def test_too_many_connections_are_refused_with_503_and_health_still_answers(policy: GatedPolicy) -> None:
    with running(policy, max_connections=3) as (_, url):
        with client(url), client(url), client(url) as third:
            with pytest.raises(InvalidStatus) as error, client(url):
                pass
            assert error.value.response.status_code == 503
            assert get(url, "/healthz") == (200, "OK\n")
            assert 'rfedge_handshakes_total{status="503"} 1.0' in get(url, "/metrics")[1]
            assert isinstance(ask(third, request(frame(0), "open the drawer")), dict)
        _wait_until_empty(url)
        with client(url):
            pass


def test_silent_sockets_are_bounded_in_number(policy: GatedPolicy) -> None:
    """They connect, say nothing, and keep nobody out: the oldest goes for a new one, long before its time is over."""
    with running(policy, max_connections=2, handshake_timeout_s=3600.0) as (_, url), ExitStack() as stack:
        silent = [stack.enter_context(raw_socket(url)) for _ in range(MAX_WAITING_PER_ADDRESS)]
        _wait_until(lambda: metric(url, "rfedge_connections") == 0.0)  # all of them were accepted before this one
        assert _ends(silent[0]), "the place of the oldest went to the request for the metrics"
        with client(url) as connection, client(url) as second:
            for each in (connection, second):
                assert isinstance(ask(each, request(frame(0), "open the drawer")), dict)
            assert metric(url, 'rfedge_closed_sockets_total{reason="address"}') >= 1


def test_silent_sockets_are_bounded_in_time(policy: GatedPolicy) -> None:
    """Slow lorises: nothing, or a byte at a time."""
    with running(policy, handshake_timeout_s=0.5) as (_, url), ExitStack() as stack:
        silent = [stack.enter_context(raw_socket(url)) for _ in range(MAX_WAITING_PER_ADDRESS)]
        silent[-1].sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        for each in silent:
            assert _ends(each)


def test_idle_clients_and_clients_that_do_not_read_are_let_go(policy: GatedPolicy) -> None:
    with running(policy, idle_timeout_s=0.2, send_timeout_s=0.2) as (_, url):
        with client(url) as connection:
            with pytest.raises(ConnectionClosed):
                connection.recv(timeout=5)
            assert (connection.close_code, connection.close_reason) == (1000, "idle for 0.2 s")
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(10)
        deaf.connect(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        enter(deaf, Target(url, None, MAX_BYTES))
        # Refusals that nobody reads fill the buffers of both sides; then the server waits, and then it gives up.
        refused = masked_frame(pack({"prompt": "go"})) * 1000
        with deaf, pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(1000):
                deaf.sendall(refused)
        with client(url) as connection:
            assert isinstance(ask(connection, request(frame(0), "open the drawer")), dict)


def test_compression_is_not_agreed_to(policy: GatedPolicy) -> None:
    """A megabyte of pixels unfolds from a kilobyte: no limit on what arrives would hold."""
    with running(policy) as (_, url), client(url, compression="deflate") as connection:
        assert "Sec-WebSocket-Extensions" not in connection.response.headers


def test_a_message_beyond_the_limit_ends_the_connection_with_1009(policy: GatedPolicy) -> None:
    with running(policy, max_message_bytes=100_000) as (_, url), client(url) as connection:
        with pytest.raises(ConnectionClosed):
            ask(connection, request(frame(0), "open the drawer"))
        assert connection.close_code == 1009


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, path = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(path), "-days", "1", "-subj", "/CN=localhost"]
    try:
        subprocess.run([*command, "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return path, key


def test_tls(policy: GatedPolicy, certificate: tuple[Path, Path]) -> None:
    tls = tls_context(*certificate)
    assert tls is not None
    with running(policy, tls=tls, handshake_timeout_s=2.0) as (_, url):
        assert url.startswith("wss://127.0.0.1:")
        with client(url, ssl=ssl.create_default_context(cafile=certificate[0])) as connection:
            assert isinstance(ask(connection, request(frame(0), "open the drawer")), dict)
        with pytest.raises(ssl.SSLCertVerificationError), client(url):
            pass
        with RemotePolicy(url, tls=ssl.create_default_context(cafile=certificate[0])) as remote:
            remote.reset("open the drawer")
            assert remote.act(frame(0)).actions.shape == (4, 7)
        with raises(ConfigError, got="a certificate that does not verify ...", expected="to be let in"):
            RemotePolicy(url)
        with (
            pytest.raises(Exception, match="did not receive a valid HTTP response|reset|closed"),
            client(url.replace("wss", "ws")),
        ):
            pass
        old = ssl.create_default_context(cafile=certificate[0])
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError), client(url, ssl=old):
            pass


def test_files_of_tls_are_named_when_they_do_not_fit(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    path, key = certificate
    assert tls_context(None, None) is None
    with raises(ConfigError, "TLS", got="no --key", expected="both files"):
        tls_context(path, None)
    with raises(ConfigError, "TLS files ...", got="...No such file..."):
        tls_context(path, tmp_path / "none")
    with raises(ConfigError, "TLS files..."):
        tls_context(key, path)


def test_where_the_token_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(file, {}) == TOKEN
    assert read_token(None, {"RFEDGE_SERVER_TOKEN": TOKEN}) == TOKEN
    assert read_token(None, {}) is None
    for text, got in (
        ("short", "a token of 5 characters"),
        ("x" * 600, "a token of 514 characters"),
        ("with a space, long", "spaces, control or non-ASCII characters"),
    ):
        file.write_text(text)
        with raises(ConfigError, f"token file {file}", got=got) as error:
            read_token(file, {})
        assert text not in str(error.value)
    with raises(ConfigError, "token file ...", got="No such file or directory"):
        read_token(tmp_path / "none", {})
    with raises(ConfigError, "$RFEDGE_SERVER_TOKEN", got="a token of 0 characters"):
        read_token(None, {"RFEDGE_SERVER_TOKEN": ""})  # set but empty is a mistake, not a choice


def test_headers_of_any_bytes_are_compared() -> None:
    assert is_authorised(None, None)
    assert is_authorised(f"Bearer {TOKEN}", TOKEN)
    for header in (None, "", "Bearer", "Bearer \udcff\udcfe", "Bearer é", f"Digest {TOKEN}"):
        assert not is_authorised(header, TOKEN)


def test_which_addresses_need_a_token() -> None:
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.3.2.1", "::1"))
    for host in ("0.0.0.0", "::", "192.168.0.7", "robot.local", ""):
        assert not is_loopback(host)
        with raises(ConfigError, got="...without a token", expected="a loopback address, or a token"):
            check_exposure(host, None, insecure=False)
        check_exposure(host, TOKEN, insecure=False)
        check_exposure(host, None, insecure=True)
    check_exposure("127.0.0.1", None, insecure=False)


def _ends(opened: socket.socket) -> bool:
    """Whether the server hangs up within some seconds."""
    opened.settimeout(5)
    try:
        while opened.recv(4096):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def _wait_until_empty(url: str) -> None:
    _wait_until(lambda: "rfedge_connections 0.0" in get(url, "/metrics", AUTHORISED)[1])


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.mark.attack
def test_pings_whose_pongs_nobody_reads_take_no_memory(policy: GatedPolicy) -> None:
    process = psutil.Process()
    with running(policy) as (_, url), raw_socket(url) as deaf:
        enter(deaf, Target(url, None, MAX_BYTES))
        pings = masked_frame(bytes(120), opcode=9) * 500
        before_bytes = process.memory_info().rss
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(2000):  # 120 MB, if it took them
                deaf.sendall(pings)
        assert process.memory_info().rss - before_bytes < 16 << 20
        good_client_without_token(url)
        assert metric(url, 'rfedge_closed_sockets_total{reason="unread"}') == 1.0


@pytest.mark.attack
@pytest.mark.parametrize("payload", [b"", b"x"])
def test_a_message_in_endless_pieces_is_cut_off(policy: GatedPolicy, payload: bytes) -> None:
    process = psutil.Process()
    with running(policy) as (_, url), raw_socket(url) as endless:
        enter(endless, Target(url, None, MAX_BYTES))
        pieces = masked_frame(payload, opcode=0, first=0) * 5000
        before_bytes = process.memory_info().rss
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            endless.sendall(masked_frame(b"x", first=0))
            for _ in range(1000):
                endless.sendall(pieces)
        assert process.memory_info().rss - before_bytes < 16 << 20
        good_client_without_token(url)


@pytest.mark.attack
def test_pages_of_other_names_are_refused_everywhere(policy: GatedPolicy) -> None:
    with running(policy, allowed_hosts=("robot.local",)) as (_, url):
        for path in ("/", "/healthz", "/metrics"):
            for headers in (
                {"Origin": "http://evil.example"},
                {"Origin": "null"},
                {"Host": "evil.example"},
                {"Host": "evil.example:8000"},
                {"Host": "127.0.0.1.evil.example"},
                {"Host": "[::1].evil"},
                {"Host": ""},
            ):
                assert get(url, path, headers)[0] == 403, (path, headers)
        for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "[::1]", "LOCALHOST:1", "robot.local:8000"):
            assert get(url, "/healthz", {"Host": host}) == (200, "OK\n")


@pytest.mark.attack
def test_refusals_are_counted(policy: GatedPolicy) -> None:
    def status(data: bytes) -> None:
        with raw_socket(url) as opened:
            opened.sendall(data)
            _ends(opened)

    head = b"Host: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    with running(policy, max_message_bytes=100_000) as (_, url):
        status(b"GET / HTTP/1.1\r\n" + head + b"Sec-WebSocket-Key: no\r\n\r\n")
        status(b"POST / HTTP/1.1\r\n" + head + b"\r\n")
        status(b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n")
        status(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n")
        status(b"GET / HTTP/1.0\r\n" + head + b"\r\n")
        with client(url) as connection, pytest.raises(ConnectionClosed):
            ask(connection, request(frame(0), "open the drawer"))
        with client(url) as connection, pytest.raises(ConnectionClosed):
            connection.send(b"\xc1")
            connection.recv(timeout=5)
            connection.recv(timeout=5)
        _wait_until(lambda: metric(url, 'rfedge_closes_total{code="1007"}') == 1.0)
        page = get(url, "/metrics")[1]
        for line in ('rfedge_closes_total{code="1009"} 1.0', 'rfedge_requests_total{outcome="malformed"} 1.0'):
            assert line in page
        for code in (400, 405, 414, 431, 505):
            assert f'rfedge_handshakes_total{{status="{code}"}} 1.0' in page, page


@pytest.mark.attack
def test_half_tls_handshakes_wait_like_all_others(policy: GatedPolicy, certificate: tuple[Path, Path]) -> None:
    num_files = psutil.Process().num_fds()
    with running(policy, tls=tls_context(*certificate), handshake_timeout_s=5.0) as (_, url):
        half = []
        for _ in range(3 * MAX_WAITING_PER_ADDRESS):
            half.append(raw_socket(url))
            half[-1].sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a ClientHello
        trust = ssl.create_default_context(cafile=certificate[0])
        with client(url, ssl=trust) as connection:
            assert isinstance(ask(connection, request(frame(0), "open the drawer")), dict)
            # Ours and theirs lie in one process: two files for each pair.
            assert psutil.Process().num_fds() - num_files < len(half) + MAX_WAITING_PER_ADDRESS + 60
        for each in half:
            each.close()


@pytest.mark.attack
def test_closing_the_oldest_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = [0.0]
    metrics = ServerMetrics(policy="p", precision="fp32")
    gate = SocketGate(metrics, now_s=lambda: clock[0])
    pairs = [socket.socketpair() for _ in range(MAX_WAITING_PER_ADDRESS + 40)]
    try:
        with caplog.at_level(logging.WARNING):
            for number, (ours, _) in enumerate(pairs):
                gate.add(ours, ("10.0.0.1", number))
                clock[0] += 3.0
        assert gate.num_waiting == MAX_WAITING_PER_ADDRESS
        assert [text.split(" ")[0] for text in caplog.messages] == ["1", "20"]
        assert pairs[0][1].recv(1) == b"", "the oldest was told"
        gate.enter(("10.0.0.1", len(pairs) - 1))
        assert (gate.num_clients, gate.num_waiting) == (1, MAX_WAITING_PER_ADDRESS - 1)
        for number in range(len(pairs)):
            gate.leave(("10.0.0.1", number))
        assert (gate.num_clients, gate.num_waiting) == (0, 0)
        for number, (ours, _) in enumerate(pairs[:100]):
            gate.add(ours, (f"10.0.{number}.1", 1))
        assert gate.num_waiting == 100, "other addresses have places of their own"
    finally:
        for pair in pairs:
            for each in pair:
                each.close()


@pytest.mark.attack
def test_a_call_that_hangs_ends_and_the_others_get_their_turn(tmp_path: Path) -> None:
    config = tiny_config(chunk_size=4)
    write_handmade_bundle(tmp_path / "endless", config, loops=2**62)
    with (
        EdgePolicy.load(tmp_path / "endless") as policy,
        running(policy, hung_after_s=0.4, deadline_ms=200.0) as (_, url),
        client(url) as one,
        client(url) as two,
    ):
        one.send(pack(request(frame(0), "open the drawer")))
        time.sleep(0.1)
        assert str(ask(two, request(frame(0), "open the drawer"))).startswith("late: ")
        assert str(receive(one)).startswith("internal: backbone: got a call that was ended")
        assert isinstance(ask(two, {"reset": True, "prompt": "push the button"}), dict), "the thread is free again"


def good_client_without_token(url: str) -> None:
    with client(url) as connection:
        assert isinstance(ask(connection, request(frame(0), "open the drawer")), dict)
