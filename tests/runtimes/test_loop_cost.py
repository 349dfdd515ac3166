"""What the control loop costs beside the policy: limits and watchdog are on, the policy takes no time."""

import time

import numpy as np

from rfedge.runtimes import make_controller
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import ControlStep
from rfedge.runtimes.control.safety import SafetyGuard, SafetyLimits, Workspace
from tests.runtimes.loop_parts import CountingPolicy, Robot

LIMITS = SafetyLimits(0.01, 0.03, Workspace((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)))
MAX_MEDIAN_MS = 1.0  # a thirtieth of a control step at 30 Hz; a tenth of it is usual on a quiet machine


def test_a_control_step_costs_little_beside_its_policy() -> None:
    ended_s: list[float] = []

    def note(_: ControlStep) -> None:
        ended_s.append(time.perf_counter())

    robot = Robot(state=np.zeros(15))
    loop = ControlLoop(
        make_controller(CountingPolicy(), "closed-loop"), robot, guard=SafetyGuard(LIMITS), backbone_deadline_s=10.0
    )
    loop.run("open the drawer", max_steps=500, on_step=note)
    assert 1000.0 * float(np.median(np.diff(ended_s))) <= MAX_MEDIAN_MS
