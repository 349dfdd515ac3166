"""`rfedge serve` and `rfedge run --server` as processes, and what a user's mistakes end in."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from rfedge.benchmarks.latency.serving_process import ServingProcess
from rfedge.cli.app import main
from rfedge.errors import BackendUnavailableError
from rfedge.runtimes.server.client import RemotePolicy
from tests.errors import raises
from tests.runtimes.handmade_bundle import INSTRUCTIONS, tiny_config, write_handmade_bundle
from tests.runtimes.server.running_server import ask, client, frame, get, request

TOKEN = "0123456789abcdef0123456789abcdef"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert len(err.splitlines()) == 1, err
    return err.removeprefix("rfedge: ")


def test_mistakes_end_in_one_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RFEDGE_SERVER_TOKEN", raising=False)
    assert refusal(capsys, "serve", tmp_path / "none").startswith(f"bundle {tmp_path / 'none'}: got no folder")
    assert refusal(capsys, "serve", bundle, "--host", "0.0.0.0").startswith("host: got 0.0.0.0 without a token")
    assert refusal(capsys, "serve", bundle, "--host", "203.0.113.9", "--insecure").startswith(
        "address 203.0.113.9:8000: got"
    )
    assert refusal(capsys, "serve", bundle, "--provider", "cude").startswith("--provider: got 'cude', expected one of cpu")
    (tmp_path / "token").write_text("short")
    said = refusal(capsys, "serve", bundle, "--token-file", tmp_path / "token")
    assert said.startswith(f"token file {tmp_path / 'token'}: got a token of 5 characters, expected 16 to 512")
    goal = ["--task", "open_drawer"]
    assert refusal(capsys, "run", bundle, *goal, "--server", "ws://x").startswith("policy: got a bundle and a server")
    assert refusal(capsys, "run", *goal, "--server", "tcp://x").startswith("server: got 'tcp://x', expected ws://HOST:PORT")
    assert refusal(capsys, "run", *goal, "--server", "ws://x", "--record", "r.jsonl").startswith("--record: got a policy on")
    assert refusal(capsys, "run", *goal, "--server", "ws://x", "--server-deadline-ms", -1).startswith("deadline: got -1")


def test_a_served_bundle_over_its_whole_life(bundle: Path) -> None:
    with ServingProcess(bundle, "--deadline-ms", "5000", token=TOKEN) as server:
        assert server.greeting["policy"] == "tiny"
        assert server.greeting["deadline_ms"] == 5000
        assert get(server.url, "/healthz") == (200, "OK\n")
        assert get(server.url, "/metrics")[0] == 401
        with client(server.url, additional_headers={"Authorization": f"Api-Key {TOKEN}"}) as connection:
            assert isinstance(ask(connection, request(frame(), INSTRUCTIONS[0])), dict)
            os.kill(server.process.pid, signal.SIGTERM)
            with pytest.raises(ConnectionClosed):
                connection.recv(timeout=10)
            assert connection.close_code == 1001
        assert server.process.wait(10) == 0
        said = server.errors()
        assert "SIGTERM: answering what is under way" in said
        assert "Traceback" not in said
        assert TOKEN not in said


def test_under_nohup_it_outlives_its_terminal(bundle: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = ServingProcess(bundle)
    finally:
        signal.signal(signal.SIGHUP, before)
    with server:
        os.kill(server.process.pid, signal.SIGHUP)
        with client(server.url) as connection:
            assert isinstance(ask(connection, request(frame(), INSTRUCTIONS[0])), dict)
        os.kill(server.process.pid, signal.SIGINT)
        assert server.process.wait(60) == 0


def test_an_occupied_port_is_said_by_the_process(bundle: Path) -> None:
    with ServingProcess(bundle) as server, raises(BackendUnavailableError, got="...Address already in use..."):
        ServingProcess(bundle, "--port", server.url.rsplit(":", 1)[1])


def test_without_the_serve_extra_the_command_names_it(bundle: Path) -> None:
    result = subprocess.run([sys.executable, "-c", _RUN, "serve", str(bundle)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr == (
        "rfedge: this command: got no prometheus_client, expected the 'serve' extra. "
        "Install it: pip install 'rfedge[serve]'.\n"
    )


_RUN = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"onnxruntime", "onnx", "torch", "openvino", "prometheus_client"}:
            raise ModuleNotFoundError(f"not on this robot: {name}", name=name)
sys.meta_path.insert(0, Refuse())
from rfedge.cli.app import main
main(sys.argv[1:])
"""


def test_run_drives_a_simulator_with_a_server_and_without_an_inference_library(tmp_path: Path) -> None:
    pytest.importorskip("mujoco", reason="mujoco is not installed")
    bundle = tmp_path / "b"
    write_handmade_bundle(bundle, tiny_config(chunk_size=4, frame_stride=2))
    environment = os.environ | {"RFEDGE_SERVER_TOKEN": TOKEN, "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
    with ServingProcess(bundle, token=TOKEN) as server:
        command = [sys.executable, "-c", _RUN, "run", "--server", server.url, "--instruction", INSTRUCTIONS[0]]
        result = subprocess.run(
            [*command, "--max-steps", "3", "--json"], env=environment, capture_output=True, text=True, timeout=120
        )
        if "renderer" in result.stderr and result.returncode == 2:
            pytest.skip(result.stderr)
        with RemotePolicy(server.url, token=TOKEN) as remote:
            assert remote.metadata["policy"] == "tiny"
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["bundle"], document["policy"], document["precision"]) == (server.url, "tiny", "fp32")
    assert document["rate_hz"] == 30
    assert (document["mode"], document["execute_steps"]) == ("jump-step", 2), "the server says how its policy was trained"
    (episode,) = document["episodes"]
    assert (episode["num_steps"], episode["num_inferences"], episode["num_unavailable"]) == (3, 2, 0)
    assert set(document["per_call_ms"]) == {"preprocess", "backbone", "head", "postprocess", "total"}
