"""A served bundle in a process of its own under hostile messages and sockets: an authorised client is answered as before."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.malformed import KINDS, Target, send_malformed
from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle
from tests.runtimes.server.running_server import ask, client, frame, raw_socket, request

pytestmark = [pytest.mark.attack, pytest.mark.slow, pytest.mark.timeout(3000)]
TOKEN = "0123456789abcdef0123456789abcdef"
AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}
NUM_MESSAGES = int(os.environ.get("RFEDGE_ATTACK_MESSAGES", "10000"))
NUM_SOCKETS = int(os.environ.get("RFEDGE_ATTACK_SOCKETS", "5000"))
NUM_TRIES = 55


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process, Path]]:
    folder = tmp_path_factory.mktemp("served")
    write_handmade_bundle(folder / "b", tiny_config(chunk_size=4))
    command = [sys.executable, "-m", "rfedge.cli.app", "serve", str(folder / "b"), "--port", "0", "--threads", "1", "--json"]
    environment = os.environ | {"RFEDGE_SERVER_TOKEN": TOKEN}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as server,
    ):
        url = server.stdout.readline().split('"url": "')[1].split('"')[0]
        try:
            yield url, psutil.Process(server.pid), folder / "log"
        finally:
            server.terminate()


def _answer(url: str) -> bytes:
    with client(url, additional_headers=AUTHORISED) as connection:
        answer = ask(connection, request(frame(0), "open the drawer"))
    assert isinstance(answer, dict), answer
    return bytes(answer["actions"].tobytes())


def _settled(process: psutil.Process, num_files: int) -> None:
    ends_s = time.monotonic() + 30
    while process.num_fds() > num_files:
        assert time.monotonic() < ends_s, f"{process.num_fds()} descriptors, {num_files} before"
        time.sleep(0.1)


def test_hostile_messages(served: tuple[str, psutil.Process, Path]) -> None:
    assert len(KINDS) == 30
    url, process, log = served
    target, rng, names = Target(url, TOKEN, 1 << 21), np.random.default_rng(0), list(KINDS)
    before = _answer(url)
    for name in names * 20:  # what is allocated once
        send_malformed(target, name, rng)
    size_bytes, num_files, answered = process.memory_info().rss, process.num_fds(), 0
    for index in range(NUM_MESSAGES):
        send_malformed(target, names[index % len(names)], rng)
        if index % (NUM_MESSAGES // NUM_TRIES) == 0 and answered < NUM_TRIES:
            assert _answer(url) == before
            answered += 1
    assert answered == NUM_TRIES
    _settled(process, num_files)
    growth = process.memory_info().rss - size_bytes
    print(f"{NUM_MESSAGES} messages of {len(names)} kinds, {answered} of {NUM_TRIES} answered, {growth / 1e6:+.1f} MB")
    assert growth < 16 << 20
    assert "Traceback" not in log.read_text()


def test_hostile_sockets(served: tuple[str, psutil.Process, Path]) -> None:
    url, process, log = served
    before, rng = _answer(url), np.random.default_rng(1)
    size_bytes, num_files, log_bytes = process.memory_info().rss, process.num_fds(), log.stat().st_size
    held: list[socket.socket] = []
    started_s, answered, longest_s = time.monotonic(), 0, 0.0
    for index in range(NUM_SOCKETS):
        held.append(raw_socket(url))
        if rng.random() < 0.5:
            held[-1].sendall(b"GET / HTTP/1.1\r\nX-Slow: "[: int(rng.integers(1, 20))])
        if len(held) > 300:
            held.pop(0).close()
        time.sleep(0.003)  # 230 a second is what locked clients out
        if index % (NUM_SOCKETS // NUM_TRIES) == 0 and answered < NUM_TRIES:
            asked_s = time.monotonic()
            assert _answer(url) == before
            longest_s = max(longest_s, time.monotonic() - asked_s)
            answered += 1
    rate = NUM_SOCKETS / (time.monotonic() - started_s)
    for each in held:
        each.close()
    assert answered == NUM_TRIES
    _settled(process, num_files)
    growth = process.memory_info().rss - size_bytes
    print(
        f"{NUM_SOCKETS} sockets, {rate:.0f} a second, {answered} of {NUM_TRIES} answered, the slowest in {longest_s:.2f} s, "
        f"{growth / 1e6:+.1f} MB, {log.stat().st_size - log_bytes} bytes of log"
    )
    assert growth < 16 << 20
    assert log.stat().st_size - log_bytes < 4096
