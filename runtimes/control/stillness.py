"""Cameras that show one picture again and again: no real camera takes the same picture twice."""

from __future__ import annotations

import numpy as np

from rfedge.messages import Observation, UInt8Array
from rfedge.runtimes.control.clock import Clock

__all__ = ["FrozenFrames", "Stillness"]


class Stillness:
    """How long each camera has shown its last picture."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: dict[str, tuple[float, UInt8Array]] = {}

    def see(self, camera: str, image: UInt8Array) -> float:
        """Return how many seconds ago this very picture was seen first; 0.0 for a new one. It keeps `image`."""
        now_s = self._clock.now_s()
        since_s, last = self._last.get(camera, (now_s, None))
        if last is None or not np.array_equal(last, image):
            self._last[camera] = (now_s, image)
            return 0.0
        return now_s - since_s


class FrozenFrames:
    """Counts frames whose picture is that of the frame before, by camera; `longest` is of the runs that go on now."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.longest = 0
        self._last: Observation | None = None
        self._running = {"static": 0, "gripper": 0}

    def see(self, observation: Observation) -> None:
        """Compare a frame with the one before; it keeps the arrays."""
        last, self._last = self._last, observation
        if last is None:
            return
        for camera in self._running:
            is_equal = np.array_equal(getattr(last, camera), getattr(observation, camera))
            self._running[camera] = self._running[camera] + 1 if is_equal else 0
            if is_equal:
                self.counts[camera] = self.counts.get(camera, 0) + 1
        self.longest = max(self._running.values())
