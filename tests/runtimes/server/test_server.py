"""The server over real sockets: answers, states that never mix, deadlines, and clean ends."""

import threading
import time
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from rfedge.errors import ConfigError
from rfedge.runtimes import EdgePolicy, RuntimeSettings
from rfedge.runtimes.server.settings import ServerSettings
from rfedge.runtimes.server.wire import pack, unpack
from tests.errors import raises
from tests.runtimes.handmade_bundle import INSTRUCTIONS
from tests.runtimes.server.running_server import GatedPolicy, ask, client, frame, get, metric, receive, request, running


def solo(bundle: Path, steps: list[tuple[int, str]]) -> list[np.ndarray[Any, Any]]:
    """The actions of one policy alone; (seed of the frame, instruction), reset when the instruction changes."""
    actions, present = [], None
    with EdgePolicy.load(bundle, settings=RuntimeSettings(threads=1)) as policy:
        for seed, instruction in steps:
            if instruction != present:
                policy.reset(instruction)
                present = instruction
            actions.append(policy.act(frame(seed)).actions)
    return actions


def assert_same(answers: list[Any], expected: list[np.ndarray[Any, Any]]) -> None:
    for answer, actions in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(answer["actions"], actions)


def test_a_frame_is_answered_as_openpi_answers(policy: GatedPolicy, bundle: Path) -> None:
    with running(policy) as (_, url), client(url) as connection:
        answers = [ask(connection, request(frame(seed), INSTRUCTIONS[0])) for seed in range(3)]
    assert_same(answers, solo(bundle, [(seed, INSTRUCTIONS[0]) for seed in range(3)]))
    first, second = answers[0], answers[1]
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first["actions"].shape == (4, 7)
    assert first["actions"].dtype == np.float32
    stages = {"infer_ms", "preprocess_ms", "backbone_ms", "head_ms", "postprocess_ms", "queue_ms"}
    assert set(first["server_timing"]) == stages
    assert set(second["server_timing"]) == stages | {"prev_total_ms"}
    assert all(duration_ms >= 0 for duration_ms in second["server_timing"].values())


def test_an_answer_says_how_many_calls_it_remembers_and_a_reset_may_come_with_a_frame(
    policy: GatedPolicy, bundle: Path
) -> None:
    words = INSTRUCTIONS[0]
    first = request(frame(0), words) | {"reset": True}
    with running(policy) as (_, url), client(url) as connection:
        answers = [ask(connection, request(frame(0), words)) for _ in range(14)]
        again = ask(connection, first)
        assert ask(connection, request(frame(0), words))["remembered_calls"] == 1  # type: ignore[index]
        assert metric(url, 'rfedge_requests_total{outcome="ok"}') == 16
        assert ask(connection, {"reset": True})["reset"] is True  # type: ignore[index]
    remembered = [answer["remembered_calls"] for answer in answers]  # type: ignore[index]
    assert remembered == [*range(12), 11, 11], "this policy acts from a window of 12 frames"
    assert again["remembered_calls"] == 0  # type: ignore[index]
    np.testing.assert_array_equal(again["actions"], answers[0]["actions"])  # type: ignore[index]
    assert not np.array_equal(answers[1]["actions"], answers[0]["actions"])  # type: ignore[index]


def test_a_client_is_told_units_rate_state_and_camera_geometry(policy: GatedPolicy) -> None:
    with running(policy) as (_, url), connect(url, compression=None) as connection:
        said = unpack(connection.recv(timeout=5))  # type: ignore[arg-type]
    assert (said["control_hz"], said["resize"], said["remembers_calls"]) == (30.0, "crop", 11)
    assert said["image_shapes"] == {"static": [200, 200, 3], "gripper": [84, 84, 3]}
    assert said["action"] == {
        "order": ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"],
        "frame": "world",
        "position_scale_m": 0.02,
        "rotation_scale_rad": 0.05,
        "rotation": "steps of fixed-axis xyz Euler angles",
        "gripper": "-1 close, 1 open",
    }
    assert len(said["state"]) == 15
    assert said["state"][:2] + said["state"][-1:] == ["tcp x (m)", "tcp y (m)", "last gripper action (-1 close, 1 open)"]


def test_ordinary_refusals_and_silence_keep_a_connection(policy: GatedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    good = request(frame(0), "open the drawer")
    array = {b"__ndarray__": True, b"data": bytes(24), b"dtype": "<c8", b"shape": [3]}
    large = np.zeros((480, 640, 3), np.uint8)
    pair = {"observation/image": large, "observation/wrist_image": large}
    refused = [
        "{}",
        msgpack.packb({"observation/image": array}),
        msgpack.packb({"observation/image": [[0] * 200]}),
        msgpack.packb({"prompt": b"open"}),
        pack(good | {"observation/image": np.zeros((200, 200, 3), np.float32)}),
        pack(good | pair),
    ]
    monkeypatch.setattr("rfedge.runtimes.server.app._PING_S", 0.05)
    with running(policy) as (_, url), client(url) as connection:
        for message in refused:
            connection.send(message)
            answer = receive(connection)
            assert isinstance(answer, str)
            assert answer.startswith("refused: "), answer
        time.sleep(0.4)  # some pings, which this client answers
        assert isinstance(ask(connection, good), dict)
    with running(policy, resize=True) as (_, url), client(url) as connection:
        assert isinstance(ask(connection, good | pair), dict), "a pair of 480 x 640 fits the default limit"


def test_states_of_clients_never_mix(policy: GatedPolicy, bundle: Path) -> None:
    """Six threads at once, each with its own frames; half of them change the instruction on the way."""
    runs = [[(10 * c + s, INSTRUCTIONS[(c + s // 7 * (c % 2)) % 3]) for s in range(20)] for c in range(6)]
    answers: list[list[Any]] = [[] for _ in runs]
    with running(policy) as (_, url):

        def stream(index: int) -> None:
            convention = ("openpi", "lerobot", "calvin")[index % 3]
            with client(url) as connection:
                for seed, instruction in runs[index]:
                    answers[index].append(ask(connection, request(frame(seed), instruction, convention)))

        threads = [threading.Thread(target=stream, args=[index]) for index in range(len(runs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert metric(url, 'rfedge_requests_total{outcome="ok"}') == 120
        assert metric(url, 'rfedge_stage_seconds_count{stage="total"}') == 120
    for run, answered in zip(runs, answers, strict=True):
        assert_same(answered, solo(bundle, run))


def test_reset_another_prompt_and_a_new_connection_clear_the_state(policy: GatedPolicy, bundle: Path) -> None:
    words, others = INSTRUCTIONS[0], INSTRUCTIONS[1]
    fresh, after_one = solo(bundle, [(0, words), (0, words)])
    assert not np.array_equal(fresh, after_one)
    with running(policy) as (_, url):
        with client(url) as connection:
            answers = [ask(connection, request(frame(0), words)) for _ in range(2)]
            assert_same(answers, [fresh, after_one])
            assert ask(connection, {"reset": True})["reset"] is True  # type: ignore[index]
            nameless = {key: value for key, value in request(frame(0), words).items() if key != "prompt"}
            assert_same([ask(connection, nameless)], [fresh])  # the instruction still holds
            assert ask(connection, {"reset": True, "prompt": others})["reset"] is True  # type: ignore[index]
            assert_same([ask(connection, nameless)], solo(bundle, [(0, others)]))
            assert_same([ask(connection, request(frame(0), words))], [fresh])
        with client(url) as connection:
            assert_same([ask(connection, request(frame(0), words))], [fresh])


def test_a_refused_request_leaves_connection_and_state_as_they_were(policy: GatedPolicy, bundle: Path) -> None:
    words = INSTRUCTIONS[0]
    with running(policy) as (_, url), client(url) as connection:
        nameless = {key: value for key, value in request(frame(0), words).items() if key != "prompt"}
        assert ask(connection, nameless) == (
            "refused: instruction: got none, expected plain words. Send prompt with the first frame."
        )
        answers = [ask(connection, request(frame(0), words))]
        wrong = request(frame(0), words) | {"observation/image": np.zeros((224, 224, 3), np.uint8)}
        assert ask(connection, wrong) == (
            "refused: observation/image: got shape (224, 224, 3), expected shape (200, 200, 3). "
            "Send that size, or start the server with --resize."
        )
        too_long = ask(connection, {"reset": True, "prompt": "drawer " * 70})
        assert isinstance(too_long, str)
        assert too_long.startswith("refused: instruction")
        answers.append(ask(connection, request(frame(1), words)))
        assert metric(url, 'rfedge_requests_total{outcome="refused"}') == 3
    assert_same(answers, solo(bundle, [(0, words), (1, words)]))


def test_a_request_whose_turn_comes_too_late_gets_an_error_and_no_action(policy: GatedPolicy, bundle: Path) -> None:
    words = INSTRUCTIONS[0]
    policy.gate.clear()
    with running(policy, deadline_ms=10_000) as (_, url), client(url) as busy, client(url) as late, client(url) as patient:
        busy.send(pack(request(frame(0), words)))
        assert policy.entered.acquire(timeout=5)  # the policy works for `busy` from here on
        patient.send(pack(request(frame(0), words)))
        assert ask(late, request(frame(0), words) | {"deadline_ms": 20}) == (
            "late: request: got more than 20 ms in the queue, expected its turn within the deadline. "
            "The frame is old: hold, and send a new one."
        )
        policy.gate.set()
        answers = [receive(busy), receive(patient), ask(late, request(frame(0), words))]
        assert metric(url, 'rfedge_requests_total{outcome="late"}') == 1
    (fresh,) = solo(bundle, [(0, words)])
    assert_same(answers, [fresh, fresh, fresh])  # the late frame never reached the state
    assert policy.num_calls == 3


def test_the_servers_deadline_holds_for_clients_that_name_none(policy: GatedPolicy) -> None:
    policy.gate.clear()
    with running(policy, deadline_ms=300) as (_, url), client(url) as busy, client(url) as late:
        busy.send(pack(request(frame(0), "open the drawer")))
        assert policy.entered.acquire(timeout=5)
        answer = ask(late, request(frame(0), "open the drawer") | {"deadline_ms": 60_000})
        assert isinstance(answer, str)
        assert answer.startswith("late: request: got more than 300 ms")
        policy.gate.set()
        assert isinstance(receive(busy), dict)  # one that runs is never thrown away


def test_nobody_computes_for_a_client_that_left(policy: GatedPolicy) -> None:
    policy.gate.clear()
    with running(policy, deadline_ms=10_000) as (_, url), client(url) as busy:
        busy.send(pack(request(frame(0), "open the drawer")))
        assert policy.entered.acquire(timeout=5)
        with client(url) as leaving:
            leaving.send(pack(request(frame(0), "open the drawer")))
            _wait_for(lambda: metric(url, "rfedge_waiting_requests") == 2)
        _wait_for(lambda: metric(url, "rfedge_waiting_requests") == 1)
        policy.gate.set()
        assert isinstance(receive(busy), dict)
        assert isinstance(ask(busy, request(frame(0), "open the drawer")), dict)
    assert policy.num_calls == 2


def test_a_second_request_waits_from_its_arrival(policy: GatedPolicy) -> None:
    """A client that does not wait for its answers gets them in order, and its own queue makes requests late too."""
    policy.gate.clear()
    with running(policy, deadline_ms=10_000) as (_, url), client(url) as connection:
        connection.send(pack(request(frame(0), "open the drawer")))
        assert policy.entered.acquire(timeout=5)
        connection.send(pack(request(frame(0), "open the drawer") | {"deadline_ms": 1}))
        connection.send(pack({"reset": True}))
        time.sleep(0.05)
        policy.gate.set()
        first, second, third = (receive(connection) for _ in range(3))
    assert isinstance(first, dict)
    assert isinstance(second, str)
    assert second.startswith("late: ")
    assert isinstance(third, dict)
    assert third["reset"] is True


def test_stop_answers_what_is_under_way_and_closes_with_1001(policy: GatedPolicy) -> None:
    policy.gate.clear()
    with running(policy, deadline_ms=10_000) as (server, url):
        with client(url) as busy, client(url) as queued, client(url) as idle:
            busy.send(pack(request(frame(0), "open the drawer")))
            assert policy.entered.acquire(timeout=5)
            queued.send(pack(request(frame(0), "open the drawer")))
            _wait_for(lambda: metric(url, "rfedge_waiting_requests") == 2)
            server.stop()
            assert receive(queued) == "stopping: the server stops"
            policy.gate.set()
            assert isinstance(receive(busy), dict)
            for connection in (busy, queued, idle):
                with pytest.raises(ConnectionClosed):
                    connection.recv(timeout=5)
                assert connection.close_code == 1001
        with pytest.raises(ConnectionRefusedError), client(url):
            pass


def test_a_policy_that_breaks_ends_one_connection_and_not_the_server(
    policy: GatedPolicy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running(policy) as (_, url):
        with client(url) as connection, monkeypatch.context() as patch:
            patch.setattr(policy.parts.backbone, "infer", lambda inputs: 1 / 0)
            assert ask(connection, request(frame(0), "open the drawer")) == (
                "internal: the policy failed, see the server's log"  # no traceback for strangers
            )
            with pytest.raises(ConnectionClosed):
                connection.recv(timeout=5)
            assert connection.close_code == 1011
        assert "ZeroDivisionError" in caplog.text
        with client(url) as connection:
            assert isinstance(ask(connection, request(frame(0), "open the drawer")), dict)


def test_resizing_is_a_choice_of_the_server(policy: GatedPolicy) -> None:
    big = request(frame(0), "open the drawer") | {
        "observation/image": np.full((224, 224, 3), 9, np.uint8),
        "observation/wrist_image": np.full((224, 224, 3), 9, np.uint8),
    }
    exact = big | {
        "observation/image": np.full((200, 200, 3), 9, np.uint8),
        "observation/wrist_image": np.full((84, 84, 3), 9, np.uint8),
    }
    with running(policy, resize=True) as (_, url), client(url) as one, client(url) as other:
        resized, direct = ask(one, big), ask(other, exact)
    assert isinstance(resized, dict)
    assert isinstance(direct, dict)
    np.testing.assert_array_equal(resized["actions"], direct["actions"])


def test_health_tells_of_a_policy_that_hangs(policy: GatedPolicy) -> None:
    with running(policy, hung_after_s=0.01) as (_, url), client(url) as connection:
        assert get(url, "/healthz") == (200, "OK\n")
        policy.gate.clear()
        connection.send(pack(request(frame(0), "open the drawer")))
        assert policy.entered.acquire(timeout=5)
        time.sleep(0.02)
        assert get(url, "/healthz") == (503, "the policy hangs\n")
        policy.gate.set()
        receive(connection)
        assert get(url, "/healthz") == (200, "OK\n")


def test_settings_that_allow_nothing_are_refused(policy: GatedPolicy) -> None:
    with raises(ConfigError, "max_connections", got=0, expected="1 or more", remedy="Raise --max-connections."):
        ServerSettings(max_connections=0)
    with raises(ConfigError, "deadline_ms", got="nan"):
        ServerSettings(deadline_ms=float("nan"))
    with raises(ConfigError, "port", got=70000):
        ServerSettings(port=70000)
    with running(policy) as (_, url):
        port = int(url.rsplit(":", 1)[1])
        with raises(ConfigError, f"address 127.0.0.1:{port}", got="Address already in use"), running(policy, port=port):
            pass


def _wait_for(condition: Any) -> None:
    deadline_s = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
