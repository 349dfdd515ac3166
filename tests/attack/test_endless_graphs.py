"""A graph with a loop of 2**62 turns ends with its deadline, and the robot was stopped."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from rfedge.runtimes import EdgePolicy, RateKeeper, RuntimeSettings, make_controller
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.stopping import StopRequest
from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle
from tests.runtimes.loop_parts import FRAME, Robot

pytestmark = pytest.mark.attack


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "endless"
    write_handmade_bundle(path, tiny_config(chunk_size=4, control_hz=100.0), loops=2**62)
    return path


@pytest.mark.parametrize("mode", ["closed-loop", "overlapped"])
def test_an_endless_graph_ends_with_its_deadline(bundle: Path, mode: str) -> None:
    robot = Robot()
    started_s = time.monotonic()
    with EdgePolicy.load(bundle, settings=RuntimeSettings(threads=1)) as policy:
        controller = make_controller(policy, mode)
        loop = ControlLoop(controller, robot, pace=RateKeeper(100.0), backbone_deadline_s=0.2, cancel=policy.cancel)
        summary = loop.run("push the button", max_steps=10_000)
        controller.close()
    assert summary.ended == "backbone"
    assert robot.num_stops >= 1
    assert all(not action.any() for action in robot.actions)
    assert time.monotonic() - started_s < 30.0


def test_an_operator_who_insists_ends_it_too(bundle: Path) -> None:
    robot, stop = Robot(), StopRequest()
    with EdgePolicy.load(bundle, settings=RuntimeSettings(threads=1)) as policy:
        timer = threading.Timer(0.5, stop.insist, ("SIGTERM",))
        timer.start()
        loop = ControlLoop(make_controller(policy, "closed-loop"), robot, stop=stop, cancel=policy.cancel)
        assert loop.run("push the button", max_steps=9).ended == "SIGTERM"
        timer.join()
    assert robot.actions == []


def test_a_loop_that_ends_computes(tmp_path: Path) -> None:
    oracle = write_handmade_bundle(tmp_path / "b", tiny_config(chunk_size=4), loops=3)
    with EdgePolicy.load(tmp_path / "b") as policy:
        policy.reset("push the button")
        policy.cancel()  # nothing is under way: nothing is ended
        actions = policy.act(FRAME).actions
    assert actions.shape == (oracle.config.chunk_size, 7)
    assert np.isfinite(actions).all()
