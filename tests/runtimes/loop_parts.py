"""A policy, a robot and a clock for tests of the loop: nothing here sleeps."""

import numpy as np

from rfedge.messages import Observation
from rfedge.runtimes import PolicyStep

FRAME = Observation(static=np.zeros((200, 200, 3), dtype=np.uint8), gripper=np.zeros((84, 84, 3), dtype=np.uint8))


class CountingPolicy:
    """Action j of inference i is full of (10 i + j) / 100."""

    def __init__(self, chunk_size: int = 4, frame_stride: int = 1) -> None:
        self.chunk_size = chunk_size
        self.frame_stride = frame_stride
        self.instructions: list[str] = []
        self.num_calls = 0

    def reset(self, instruction: str) -> None:
        self.instructions.append(instruction)
        self.num_calls = 0

    def act(self, observation: Observation) -> PolicyStep:
        assert observation.static.shape == (200, 200, 3)
        values = (10 * self.num_calls + np.arange(self.chunk_size)) / 100
        self.num_calls += 1
        return PolicyStep(actions=np.repeat(values[:, None], 7, axis=1).astype(np.float32), timings_ms={"total": 1.0})


class Robot:
    """Keeps what it was sent; with a state it says where its tool is and what its gripper did last."""

    def __init__(self, state: np.ndarray | None = None) -> None:
        self.actions: list[np.ndarray] = []
        self.num_frames = 0
        self.num_stops = 0
        self.state = state

    def observe(self) -> Observation:
        self.num_frames += 1
        return FRAME if self.state is None else Observation(static=FRAME.static, gripper=FRAME.gripper, state=self.state)

    def apply(self, action: np.ndarray) -> None:
        assert self.num_stops == 0, "nothing moves a robot that was stopped"
        self.actions.append(action)

    def stop(self) -> None:
        self.num_stops += 1


class FakeClock:
    """Time passes by sleeping on it, or by hand."""

    def __init__(self) -> None:
        self.time_s = 100.0
        self.sleeps_s: list[float] = []

    def now_s(self) -> float:
        return self.time_s

    def sleep_s(self, seconds: float) -> None:
        self.sleeps_s.append(seconds)
        self.time_s += seconds
