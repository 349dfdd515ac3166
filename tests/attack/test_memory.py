"""100,000 control steps and 100,000 requests: resident memory at the end is that of the beginning within 1 %."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from rfedge.runtimes import EdgePolicy, RuntimeSettings, make_controller
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import ControlStep
from tests.runtimes.loop_parts import Robot
from tests.runtimes.server.running_server import ask, client, frame, request

pytestmark = [pytest.mark.attack, pytest.mark.slow, pytest.mark.timeout(3000)]
COUNT = int(os.environ.get("RFEDGE_ATTACK_COUNT", "100000"))
GROWTH = 0.01


class ForgetfulRobot(Robot):
    """Keeps nothing of what it was sent."""

    def apply(self, action: np.ndarray) -> None:
        assert action.shape == (7,)


def test_control_steps_keep_memory_flat(bundle: Path) -> None:
    process, sizes = psutil.Process(), list[int]()

    def sample(step: ControlStep) -> None:
        if step.index % (COUNT // 50) == COUNT // 50 - 1:
            sizes.append(process.memory_info().rss)

    with EdgePolicy.load(bundle, settings=RuntimeSettings(threads=1)) as policy:
        loop = ControlLoop(make_controller(policy, "closed-loop"), ForgetfulRobot(), step_deadline_s=60.0)
        started_s = time.monotonic()
        assert loop.run("push the button", max_steps=COUNT, on_step=sample).num_steps == COUNT
    print(f"{COUNT} steps in {time.monotonic() - started_s:.0f} s: {sizes[0] / 1e6:.1f} MB, at most {max(sizes) / 1e6:.1f}")
    assert max(sizes) <= sizes[0] * (1 + GROWTH)


def test_requests_keep_memory_flat(bundle: Path) -> None:
    command = [sys.executable, "-m", "rfedge.cli.app", "serve", str(bundle), "--port", "0", "--threads", "1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            url = server.stdout.readline().split('"url": "')[1].split('"')[0]
            process, sizes, fields = psutil.Process(server.pid), list[int](), request(frame(0), "push the button")
            started_s, num_files = time.monotonic(), 0
            for _ in range(50):
                with client(url) as connection:
                    first = ask(connection, fields)
                    for _ in range(COUNT // 50 - 1):
                        answer = ask(connection, fields)
                    assert isinstance(answer, dict)
                    assert isinstance(first, dict)
                sizes.append(process.memory_info().rss)
                if len(sizes) == 5:  # what is allocated once is there
                    sizes.clear()
                    sizes.append(process.memory_info().rss)
                num_files = num_files or process.num_fds()
            took_s, first_mb, most_mb = time.monotonic() - started_s, sizes[0] / 1e6, max(sizes) / 1e6
            print(f"{COUNT} requests in {took_s:.0f} s: {first_mb:.1f} MB, at most {most_mb:.1f}")
            assert process.num_fds() <= num_files + 2
            assert max(sizes) <= sizes[0] * (1 + GROWTH)
        finally:
            server.terminate()
