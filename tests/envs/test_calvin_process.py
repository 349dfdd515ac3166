"""The simulator's process without a simulator: framing, and that nothing hangs or stays behind. Every process is real."""

import contextlib
import gc
import importlib.util
import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfedge.envs import make_environment
from rfedge.envs.calvin import server
from rfedge.envs.calvin.environment import SimulatorProcess
from rfedge.envs.calvin.server import ProtocolError, encode, receive
from rfedge.errors import BackendUnavailableError, ConfigError
from tests.errors import raises

SERVER = [sys.executable, server.__file__]


# --- messages ---------------------------------------------------------------------------------------------------------
def sent(*parts: bytes) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    ours, theirs = Pipe()
    with ours, theirs:
        for part in parts:
            ours.send_bytes(part)
        ours.close()
        return receive(theirs)


def sent_raw(content: bytes) -> None:
    ours, theirs = Pipe()
    with ours, theirs:
        os.write(ours.fileno(), content)
        receive(theirs)


def test_a_message_reads_back() -> None:
    arrays = {
        "state": np.arange(15.0) / 7.0,
        "image": np.arange(84 * 84 * 3, dtype=np.uint8).reshape(84, 84, 3)[:, ::-1],
    }
    header, back = sent(*encode({"method": "advance", "seed": 3}, arrays))
    assert header == {"method": "advance", "seed": 3}
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
        back[name][...] = 0  # its own memory


def test_only_plain_numbers_travel() -> None:
    with pytest.raises(ProtocolError, match="object"):
        sent(*encode({}, {"pickle": np.array([{}], dtype=object)}))
    with pytest.raises(ValueError, match="JSON compliant"):
        encode({"x": float("nan")}, {})


@pytest.mark.parametrize(
    "parts",
    [
        (b'{"arrays": [["a", "float64", [2]]]}', b"\0" * 8),
        (b'{"arrays": [["a", "float64", [1]]]}', b"\0" * 16),
        (b'{"arrays": [["a", "float64", [1.0]]]}', b"\0" * 8),
        (b'{"arrays": [["a", "object", [1]]]}', b"\0" * 8),
        (b'{"arrays": [["a", "float64", [1000000000000000000000]]]}', b"\0" * 8),
        (b'{"arrays": [["a"]]}',),
        (b'{"arrays": 3}',),
        (b"{}",),
        (b"[]",),
        (b"not json",),
        (b"[" * 60_000,),
        (b"\xff\xfe",),
    ],
)
def test_a_damaged_message_is_a_protocol_error(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(ProtocolError):
        sent(*parts)


@given(parts=st.lists(st.binary(max_size=60), min_size=1, max_size=3))
def test_no_bytes_do_anything_else(parts: list[bytes]) -> None:
    with contextlib.suppress(ProtocolError, EOFError):
        header, _ = sent(*parts)
        assert isinstance(header, dict)


def test_messages_are_bounded_and_whole() -> None:
    with pytest.raises(OSError, match="bad message length"):
        sent_raw(b"\x7f\xff\xff\xff")
    with pytest.raises(EOFError):
        sent(b'{"arrays": [["a", "float64", [1]]]}')


# --- an interpreter that will not do ----------------------------------------------------------------------------------
def refusal(**options: object) -> str:
    with pytest.raises(BackendUnavailableError) as error:
        make_environment("calvin", **options)
    text = str(error.value)
    assert "\n" not in text
    assert "docs/how-to/install_calvin.md" in text
    return text


def install(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a calvin_env into the child's path whose import does what `source` says."""
    (folder / "calvin_env").mkdir()
    (folder / "calvin_env" / "__init__.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_a_missing_interpreter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "python"
    assert f"got '{missing}' (No such file or directory)" in refusal(python=missing)
    monkeypatch.setenv("RFEDGE_CALVIN_PYTHON", str(missing))
    assert f"got '{missing}'" in refusal()
    missing.write_text("not a program")
    assert "Permission denied" in refusal()


@pytest.mark.skipif(importlib.util.find_spec("calvin_env") is not None, reason="calvin_env is installed here")
def test_an_interpreter_without_calvin_env_is_told_from_one_that_is_missing() -> None:
    text = refusal(python=sys.executable)
    assert "No module named 'calvin_env'" in text
    assert "RFEDGE_CALVIN_PYTHON" in text


def test_a_folder_that_hides_calvin_env_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "calvin_env").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if importlib.util.find_spec("calvin_env") is None:
        assert "empty namespace" in refusal(python=sys.executable)


def test_what_libraries_print_does_not_reach_the_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = (
        "import os\nprint('noise' * 9999)\nos.write(1, b'x' * 9999)\nos.system('echo noise')\nraise ImportError('a bad one')"
    )
    install(tmp_path, noise, monkeypatch)
    assert "got ImportError: a bad one, expected" in refusal(python=sys.executable)


def test_an_import_that_leaves_by_sys_exit_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "import sys; sys.exit()", monkeypatch)  # as calvin_env does without its EGL plugin
    assert "libegl1" in refusal(python=sys.executable)


def test_a_crash_while_it_starts_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import os, sys\nprint('last words', file=sys.stderr, flush=True)\nos.abort()"
    install(tmp_path, source, monkeypatch)
    assert "its end with SIGABRT (last words) during 'open'" in refusal(python=sys.executable)


def test_a_start_that_hangs_ends_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "import time; time.sleep(600)", monkeypatch)
    started_s = time.monotonic()
    assert "no answer to 'open', expected one within 0.5 s" in refusal(python=sys.executable, start_timeout_s=0.5)
    assert time.monotonic() - started_s < 20.0


def test_a_script_around_the_interpreter_does_not_outlast_the_limit(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nsleep 20\ntrue\n")  # `sleep` holds the connection too, and is not what is killed
    program.chmod(0o755)
    started_s = time.monotonic()
    assert "no answer to 'open', expected one within 0.5 s" in refusal(python=program, start_timeout_s=0.5)
    assert time.monotonic() - started_s < 15.0


@pytest.mark.parametrize("program", ["cat", "true", "echo"])
def test_a_program_that_is_no_interpreter_is_refused(program: str) -> None:
    refusal(python=f"/bin/{program}", start_timeout_s=10.0)


@pytest.mark.parametrize("option", [{"renderer": "elg"}, {"scene": "E"}, {"seed": -1}])
def test_impossible_options_start_nothing(option: dict[str, object]) -> None:
    with raises(ConfigError, remedy="Choose..."):
        make_environment("calvin", python="/nowhere", **option)


# --- a process that fails later ---------------------------------------------------------------------------------------
ECHO = f"""
import importlib.util, os, signal, sys, time
spec = importlib.util.spec_from_file_location("server", {server.__file__!r})
server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(server)
connection = server.Connection(os.dup(0))
while True:
    header, arrays = server.receive(connection)
    reply = server.encode({{"ok": True, "method": header["method"]}}, arrays)
    if header["method"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif header["method"] == "hang":
        time.sleep(600)
    elif header["method"] == "half":
        os.write(connection.fileno(), len(reply[0]).to_bytes(4, "big") + reply[0][:10])
        time.sleep(600)
    elif header["method"] == "junk":
        os.write(connection.fileno(), b"Traceback (most recent call last)")
    elif header["method"] == "fail":
        reply = server.encode({{"ok": False, "kind": "error", "error": "error: bullet is unhappy"}}, {{}})
    for part in reply:
        connection.send_bytes(part)
"""


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def ends_within(pid: int, limit_s: float) -> bool:
    deadline_s = time.monotonic() + limit_s
    while is_running(pid):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def test_requests_are_answered_in_turn() -> None:
    process = SimulatorProcess([sys.executable, "-c", ECHO])
    for value in (1.0, 2.0):
        reply, arrays = process.request({"method": "echo"}, {"x": np.full(24, value)}, timeout_s=20.0)
        assert reply["method"] == "echo"
        np.testing.assert_array_equal(arrays["x"], np.full(24, value))
    process.close()
    process.close()
    assert not is_running(process.pid)


@pytest.mark.parametrize(
    ("method", "got"),
    [
        ("die", "its end with SIGKILL during 'die'"),
        ("hang", "no answer to 'hang'"),
        ("half", "no answer to 'half'"),
        ("junk", "a broken connection (bad message length) during 'junk'"),
        ("fail", "error: bullet is unhappy"),
    ],
)
def test_a_failed_request_is_one_error_and_ends_the_process(method: str, got: str) -> None:
    process = SimulatorProcess([sys.executable, "-c", ECHO])
    process.request({"method": "echo"}, timeout_s=20.0)
    with raises(BackendUnavailableError, "calvin simulator", got=got):
        process.request({"method": method}, timeout_s=0.5)
    assert not is_running(process.pid)
    with raises(BackendUnavailableError, got="a closed one"):
        process.request({"method": "echo"}, timeout_s=1.0)


def test_a_pause_of_the_asking_process_does_not_count() -> None:
    slow = ECHO.replace("time.sleep(600)", "time.sleep(1.5)")
    code = f"""
import sys
from rfedge.envs.calvin.environment import SimulatorProcess
process = SimulatorProcess([sys.executable, "-c", {slow!r}])
process.request({{"method": "echo"}}, timeout_s=20.0)
print("asks", flush=True)
print(process.request({{"method": "hang"}}, timeout_s=1.0)[0]["method"])
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as asking:
        assert asking.stdout is not None
        assert asking.stdout.readline() == "asks\n"
        time.sleep(0.3)
        asking.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        asking.send_signal(signal.SIGCONT)
        assert asking.communicate(timeout=60)[0] == "hang\n"


def test_an_unknown_request_is_refused_by_the_real_server() -> None:
    process = SimulatorProcess(SERVER)
    with raises(BackendUnavailableError, got="ProtocolError: an unknown method 'dance'"):
        process.request({"method": "dance"}, timeout_s=20.0)


def test_a_forgotten_process_ends() -> None:
    process = SimulatorProcess(SERVER)
    pid = process.pid
    assert is_running(pid)
    del process
    gc.collect()
    assert not is_running(pid)


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "sys.exit()"])
def test_the_server_does_not_outlive_its_parent(end: str) -> None:
    code = f"""
import os, sys
from rfedge.envs.calvin.environment import SimulatorProcess
process = SimulatorProcess({SERVER!r})
print(process.pid, flush=True)
{end}
"""
    parent = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ends_within(int(parent.stdout), 20.0)


def test_a_forked_copy_does_not_end_its_parents_process() -> None:
    process = SimulatorProcess([sys.executable, "-c", ECHO])
    child = os.fork()
    if child == 0:
        process.close()
        os._exit(0)
    os.waitpid(child, 0)
    reply, _ = process.request({"method": "echo"}, timeout_s=20.0)
    assert reply["ok"]
    process.close()


def test_the_server_needs_nothing_of_rfedge() -> None:
    code = (
        f"import runpy, sys; runpy.run_path({server.__file__!r}, run_name='copy'); "
        "assert not [name for name in sys.modules if name.split('.')[0] == 'rfedge']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
