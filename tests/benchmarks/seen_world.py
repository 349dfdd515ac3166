"""The world of doors and lights with cameras that see them, so that what a policy does depends on where it is."""

from dataclasses import dataclass

import numpy as np

from rfedge.messages import Observation
from tests.benchmarks.joint_world import JointWorld


class SeenWorld(JointWorld):
    """Shows each joint and light as the brightness of a colour, and the time as that of another."""

    def observe(self) -> Observation:
        self.num_frames += 1
        levels = np.clip(self.scene_obs[:6] * [400, 400, 400, 400, 200, 200], 0, 255).astype(np.uint8)
        return Observation(
            static=np.broadcast_to(levels[[0, 1, 4]], (200, 200, 3)).copy(),
            gripper=np.broadcast_to(levels[[5, 1, 0]], (84, 84, 3)).copy(),
        )


@dataclass(frozen=True)
class SeenSimulator:
    """Opens it."""

    name: str = "seen joints"
    scene: str = "D"

    def open(self) -> SeenWorld:
        return SeenWorld()


class SeenElsewhere(SeenSimulator):
    """Opens it on a machine that renders otherwise."""

    def open(self) -> SeenWorld:
        world = super().open()
        world.renderer = "osmesa"
        return world
