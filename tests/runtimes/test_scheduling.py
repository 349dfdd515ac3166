"""The control loop's scheduling: had for the loop alone, and given back."""

import os
import threading

import numpy as np
import pytest

from rfedge.errors import BackendUnavailableError, ConfigError
from rfedge.runtimes.control.controllers import make_controller
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.scheduling import check_priority, realtime_priority
from tests.errors import raises
from tests.runtimes.loop_parts import CountingPolicy, Robot

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setscheduler"), reason="an operating system without sched(7)")


def _scheduling() -> tuple[int, int]:
    return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK, os.sched_getparam(0).sched_priority


def _scheduling_of_a_new_thread() -> tuple[int, int]:
    found: list[tuple[int, int]] = []
    thread = threading.Thread(target=lambda: found.append(_scheduling()))
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_is_first_in_first_out_inside_and_ordinary_after() -> None:
    before = _scheduling()
    try:
        with realtime_priority(50):
            assert _scheduling() == (os.SCHED_FIFO, 50)
            assert _scheduling_of_a_new_thread() == (os.SCHED_OTHER, 0), "the next inference is not as urgent as the loop"
        assert _scheduling() == before
        with realtime_priority(51, inherited=True):
            assert _scheduling_of_a_new_thread() == (os.SCHED_FIFO, 51), "what watches a loop must not wait for it"
        with pytest.raises(ZeroDivisionError), realtime_priority(50):
            raise ZeroDivisionError
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    assert _scheduling() == before


def test_the_loop_runs_with_its_priority_and_its_watchdog_above_it() -> None:
    found: dict[str, tuple[int, int]] = {}

    class Noting(Robot):
        def apply(self, action: np.ndarray) -> None:
            found["loop"] = _scheduling()
            watchdog = next(thread for thread in threading.enumerate() if thread.name == "rfedge-watchdog")
            assert watchdog.native_id is not None
            found["watchdog"] = (
                os.sched_getscheduler(watchdog.native_id),
                os.sched_getparam(watchdog.native_id).sched_priority,
            )

    controller = make_controller(CountingPolicy(), "closed-loop")
    try:
        ControlLoop(controller, Noting(), priority=50, backbone_deadline_s=60.0).run("push the button", max_steps=1)
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    assert found == {"loop": (os.SCHED_FIFO, 50), "watchdog": (os.SCHED_FIFO, 51)}
    assert _scheduling() == (os.SCHED_OTHER, 0)


def test_without_a_priority_nothing_changes() -> None:
    before = _scheduling()
    with realtime_priority(None):
        assert _scheduling() == before


def test_a_user_without_the_right_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, policy: int, parameter: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with raises(BackendUnavailableError, "realtime priority", got="no permission"), realtime_priority(50):
        pytest.fail("began without the right")


@pytest.mark.parametrize("priority", [0, -1, 98])
def test_the_kernels_own_priority_is_refused(priority: int) -> None:
    with raises(ConfigError, "realtime_priority", got=priority, expected="1 to 97"):
        check_priority(priority)
    assert check_priority(97) == 97
    assert check_priority(None) is None
