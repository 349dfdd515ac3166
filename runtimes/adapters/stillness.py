"""How long a camera has shown one picture: no real camera takes the same picture twice."""

from __future__ import annotations

import numpy as np

from rfedge.messages import UInt8Array
from rfedge.runtimes.clock import Clock

__all__ = ["Stillness"]


class Stillness:
    """Remembers the last picture of each camera.

    Args:
        clock: where time comes from.
    """

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
