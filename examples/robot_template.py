"""A real arm behind rfedge's control loop. Copy this file and fill `ArmDriver` with your arm's own library.

docs/how-to/connect_a_robot.md explains each choice made here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rfedge.messages import GRIPPER_IMAGE_SHAPE, GRIPPER_KEEP, GRIPPER_OPEN, POSE_SIZE, STATIC_IMAGE_SHAPE, Observation
from rfedge.robot.camera import DEFAULT_RESIZE
from rfedge.robot.conventions import Conventions
from rfedge.runtimes import EdgePolicy, RateKeeper, RuntimeSettings, make_controller
from rfedge.runtimes.adapters.conversion import fit_camera, tool_step
from rfedge.runtimes.control.limits import LatePolicy
from rfedge.runtimes.control.loop import ControlLoop, LoopSummary
from rfedge.runtimes.control.resting import claim_robot
from rfedge.runtimes.control.safety import SafetyGuard, SafetyLimits, Workspace
from rfedge.runtimes.control.stopping import StopRequest, stop_on_signals

# Share of the policy's own rate, for first runs: at a sixth of 30 Hz a step of 0.01 m is 0.05 m/s.
SPEED = 1.0 / 6.0
# Without max_step_m each axis may move 0.02 m in a step, which is 0.0346 m along the diagonal.
LIMITS = SafetyLimits(
    max_step_m=0.01,
    max_step_rad=0.03,
    workspace=Workspace(low_m=(-0.3, -0.3, 0.35), high_m=(0.3, 0.1, 0.7)),
    adds_up=False,  # this arm takes every step from where it is
    max_pose_jump_m=0.05,  # a tool that jumps further between two frames is a sensor that lies
    min_gripper_steps=3,
)
# Without an action for so many steps the arm rests by itself, whatever has become of this process.
HEARTBEAT_STEPS = 10
# Names the arm to other processes of this machine: only one of them drives it.
ARM_NAME = "my-arm"


class ArmDriver(Protocol):
    """Calls that your arm's library has to offer, one way or another."""

    def static_image(self) -> npt.NDArray[np.uint8]:
        """Newest picture of the fixed camera, (height, width, 3) RGB."""

    def wrist_image(self) -> npt.NDArray[np.uint8]:
        """Newest picture of the camera on the wrist."""

    def tool_pose(self) -> npt.NDArray[np.float64]:
        """(6,) x y z in metres and rotations about the fixed axes x y z in radians, in the world frame."""

    def joint_angles(self) -> npt.NDArray[np.float64]:
        """(7,) in radians; zeros for an arm with fewer, unless the policy was trained with proprioception."""

    def gripper_width_m(self) -> float:
        """Distance of the fingers."""

    def move_tool_by(self, translation_m: npt.NDArray[np.float64], rotation_rad: npt.NDArray[np.float64]) -> None:
        """Begin to move the tool by this much in the world frame, and return at once.

        `rotation_rad` is a rotation vector: an axis times an angle, not steps of Euler angles.
        """

    def move_gripper(self, *, opened: bool) -> None:
        """Begin to open or close, and return at once."""

    def halt(self) -> None:
        """Stand still, gripper as it is. Called from any thread, also while another method hangs, and more than once."""

    def set_command_timeout(self, seconds: float) -> None:
        """Let the arm's controller halt by itself when no command came for so long.

        Most have it: "watchdog", "command timeout"; MoveIt Servo calls it incoming_command_timeout. For one that has not,
        call `beat` of a `rfedge.runtimes.control.heartbeat.Heartbeat` in `MyArm.apply`: its own process halts the arm.
        """


class MyArm:
    """`rfedge.runtimes.control.robot.Robot` for one arm."""

    def __init__(self, driver: ArmDriver, conventions: Conventions) -> None:
        self._driver = driver
        self._gripper = GRIPPER_KEEP  # unknown until it was commanded: it may hold something
        self._resize = conventions.resize or DEFAULT_RESIZE

    @property
    def conventions(self) -> Conventions:
        return Conventions(resize=self._resize)

    def observe(self) -> Observation:
        state = np.concatenate(
            [self._driver.tool_pose(), [self._driver.gripper_width_m()], self._driver.joint_angles(), [self._gripper]]
        )
        # Brought to size as the pictures of the demonstrations were, and copied.
        return Observation(
            static=fit_camera("static", self._driver.static_image(), STATIC_IMAGE_SHAPE, self._resize),
            gripper=fit_camera("wrist", self._driver.wrist_image(), GRIPPER_IMAGE_SHAPE, self._resize),
            state=state,
        )

    def apply(self, action: npt.NDArray[np.float32]) -> None:
        gripper = float(action[POSE_SIZE])  # GRIPPER_OPEN, GRIPPER_CLOSE, or GRIPPER_KEEP: no command
        if gripper not in (GRIPPER_KEEP, self._gripper):
            self._driver.move_gripper(opened=gripper == GRIPPER_OPEN)
            self._gripper = gripper
        # The rotation of an action is a step of Euler angles: which rotation that is depends on where the tool points now.
        self._driver.move_tool_by(*tool_step(action, self._driver.tool_pose()[3:]))

    def stop(self) -> None:
        self._driver.halt()

    def expect_actions(self, within_s: float) -> None:
        self._driver.set_command_timeout(within_s)


def run_arm(driver: ArmDriver, bundle: Path, instruction: str, *, max_steps: int, speed: float = SPEED) -> LoopSummary:
    """Follow one instruction. Ctrl-C, SIGTERM, a lost terminal end it; however it ends, the arm was halted."""
    stop = StopRequest()
    with (
        claim_robot(ARM_NAME),
        EdgePolicy.load(bundle, settings=RuntimeSettings(threads=1)) as policy,
        stop_on_signals(stop),
    ):
        rate_hz = speed * policy.config.control_hz
        loop = ControlLoop(
            make_controller(policy),  # as it was trained: closed loop or jump-step
            MyArm(driver, policy.conventions),
            pace=RateKeeper(rate_hz),
            speed=speed,
            late=LatePolicy("hold", stop_after_misses=5),
            guard=SafetyGuard(LIMITS),
            backbone_deadline_s=1.0,  # and two seconds more for a whole step; `step_deadline_s` says otherwise
            heartbeat_s=HEARTBEAT_STEPS / rate_hz,
            stop=stop,
        )
        return loop.run(instruction, max_steps=max_steps)
