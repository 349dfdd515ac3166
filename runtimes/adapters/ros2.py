"""An arm on ROS 2 as `rfedge.runtimes.control.robot.Robot`: two image topics in, a twist and a gripper command out.

    sensor_msgs/Image           both cameras
    geometry_msgs/PoseStamped   pose of the tool in the world frame; a workspace and every action that rotates need it
    geometry_msgs/TwistStamped  speed of the tool for one control step, as MoveIt Servo takes it
    std_msgs/Float64MultiArray  gripper position, as ros2_control's position controllers take it

Topics in are subscribed to as sensor data (best effort), as most drivers publish them: a reliable subscriber would hear
nothing. What a message means is in functions that need no ROS; the class only subscribes and publishes.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from rfedge.arrays import Float32, Float64
from rfedge.errors import BackendUnavailableError, ContractError
from rfedge.messages import (
    GRIPPER_IMAGE_SHAPE,
    GRIPPER_KEEP,
    GRIPPER_OPEN,
    POSE_SIZE,
    STATE_SIZE,
    STATIC_IMAGE_SHAPE,
    FloatArray,
    Observation,
    UInt8Array,
)
from rfedge.robot.camera import DEFAULT_RESIZE, check_resize
from rfedge.robot.conventions import Conventions, HasConventions, refuse_disagreement
from rfedge.robot.rotations import quaternions_to_euler
from rfedge.runtimes.adapters.conversion import fit_camera, tool_step
from rfedge.runtimes.backends.optional_library import import_optional

__all__ = ["Ros2Robot", "Ros2Settings", "image_from_message", "state_from_pose", "twist_of_action"]

# encoding -> channels of a pixel, and which of them are red, green and blue
_ENCODINGS: Final = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}
_REMEDY: Final = "Source ROS 2 (for instance /opt/ros/jazzy/setup.bash) in this shell; it does not come from PyPI."


@dataclass(frozen=True, slots=True)
class Ros2Settings:
    """Topics and units.

    Attributes:
        pose_topic: None when nobody publishes the tool's pose; actions that rotate are refused then.
        frame: of the twist; the policy's actions are in the world frame.
        rate_hz: a step of 0.02 m is a speed of 0.02 m times this. `for_policy` takes the policy's.
        gripper_closed, gripper_open: positions of the gripper's joint, in its own unit.
        max_age_s: a frame older than this is no frame.
        uses_stamps: whether ages count from the messages' header stamps, by this machine's clock; False where they are of
            another clock, such as a simulator's, and ages count from arrival.
    """

    static_topic: str = "/static_camera/image_raw"
    gripper_topic: str = "/wrist_camera/image_raw"
    pose_topic: str | None = None
    twist_topic: str = "/servo_node/delta_twist_cmds"
    gripper_command_topic: str = "/gripper_controller/commands"
    frame: str = "world"
    rate_hz: float = 30.0
    gripper_closed: float = 0.0
    gripper_open: float = 0.04
    max_age_s: float = 0.5
    uses_stamps: bool = True
    resize: str = DEFAULT_RESIZE

    def __post_init__(self) -> None:
        check_resize(self.resize)

    @classmethod
    def for_policy(cls, policy: HasConventions, **settings: Any) -> Ros2Settings:
        """Return `settings` with the rate and camera geometry of a policy; ConfigError where one of them is another."""
        own = policy.conventions
        given = Conventions(settings.get("rate_hz"), settings.get("resize"))
        refuse_disagreement("Ros2Settings", given, "the policy", own)
        filled = {"rate_hz": own.control_hz, "resize": own.resize}
        return cls(**{name: value for name, value in filled.items() if value is not None} | settings)


def image_from_message(message: Any) -> UInt8Array:
    """Return uint8 (height, width, 3) RGB of a sensor_msgs/Image.

    Raises:
        ContractError: the encoding is another, or there are fewer bytes than height and width say.
    """
    if message.encoding not in _ENCODINGS:
        expected, remedy = f"one of {', '.join(_ENCODINGS)}", "Republish it, for instance with image_proc."
        raise ContractError("image message", got=f"encoding {message.encoding!r}", expected=expected, remedy=remedy)
    channels, order = _ENCODINGS[message.encoding]
    pixels = np.frombuffer(message.data, dtype=np.uint8)
    row_bytes = message.width * channels
    if message.step < row_bytes or pixels.size < message.step * message.height:
        got, expected = f"{pixels.size} bytes in rows of {message.step}", f"{message.height} rows of {row_bytes} or more"
        raise ContractError("image message", got=got, expected=expected, remedy="Check the camera driver.")
    rows = pixels[: message.step * message.height].reshape(message.height, message.step)[:, :row_bytes]
    return np.ascontiguousarray(rows.reshape(message.height, message.width, channels)[:, :, order])


def state_from_pose(pose: Any, gripper: float) -> Float64:
    """Return robot_obs, float64 (15,), of a geometry_msgs/Pose and the last gripper command, 0 before the first one.

    Joints and width are 0. That is enough for a workspace; for a policy with proprioception subclass `Ros2Robot`.
    """
    turn = pose.orientation
    state = np.zeros(STATE_SIZE)
    state[:3] = pose.position.x, pose.position.y, pose.position.z
    state[3:POSE_SIZE] = quaternions_to_euler(np.array([turn.x, turn.y, turn.z, turn.w]))
    state[-1] = gripper
    return state


def twist_of_action(
    action: Float32, rate_hz: float, euler_rad: FloatArray | None = None
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the linear (m/s) and angular (rad/s) speed, world frame, that makes an action (7,) in one control step.

    `euler_rad` (3,) are measured fixed-axis xyz angles of the tool. ContractError: the action rotates and there are none.
    """
    x, y, z, about_x, about_y, about_z = np.concatenate(tool_step(action, euler_rad)) * rate_hz
    return (float(x), float(y), float(z)), (float(about_x), float(about_y), float(about_z))


class Ros2Robot(AbstractContextManager["Ros2Robot"]):
    """Subscribes and publishes; use it as a context manager or call `close`.

    Raises:
        BackendUnavailableError: ROS 2 is not in this shell.
    """

    def __init__(self, settings: Ros2Settings | None = None) -> None:
        self._settings = settings or Ros2Settings()
        load: Callable[[str], Any] = partial(import_optional, needed_for="ROS 2 robot", remedy=_REMEDY)
        self._rclpy: Any = load("rclpy")
        messages = {package: load(f"{package}.msg") for package in ("sensor_msgs", "geometry_msgs", "std_msgs")}
        executors = load("rclpy.executors")
        self._twist_type: Any = messages["geometry_msgs"].TwistStamped
        self._gripper_type: Any = messages["std_msgs"].Float64MultiArray
        self._lock = threading.Lock()
        self._latest: dict[str, tuple[float, Any]] = {}
        self._gripper = GRIPPER_KEEP  # unknown until it was commanded: it may hold something
        self._has_moved = False
        self._context: Any = load("rclpy.context").Context()  # its own: the default one would take over the signals
        self._rclpy.init(context=self._context)
        self._node: Any = self._rclpy.create_node("rfedge", context=self._context)
        topics = {self._settings.static_topic: messages["sensor_msgs"].Image}
        topics[self._settings.gripper_topic] = messages["sensor_msgs"].Image
        if self._settings.pose_topic is not None:
            topics[self._settings.pose_topic] = messages["geometry_msgs"].PoseStamped
        qos = load("rclpy.qos")
        for topic, kind in topics.items():
            # Best effort hears both kinds of publisher.
            self._node.create_subscription(kind, topic, self._receiver(topic), qos.qos_profile_sensor_data)
        self._twists: Any = self._node.create_publisher(self._twist_type, self._settings.twist_topic, 1)
        self._grippers: Any = self._node.create_publisher(self._gripper_type, self._settings.gripper_command_topic, 1)
        self._executor: Any = executors.SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, name="rfedge-ros2", daemon=True)
        self._thread.start()

    @property
    def conventions(self) -> Conventions:
        """The rate that a twist's speed is for, and the camera geometry."""
        return Conventions(self._settings.rate_hz, self._settings.resize)

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, then leave ROS."""
        self.stop()
        self._executor.shutdown()
        self._thread.join()
        self._node.destroy_node()
        self._rclpy.shutdown(context=self._context)

    def observe(self) -> Observation:
        """Return the newest frame of both cameras.

        Raises:
            BackendUnavailableError: a topic is silent.
            ContractError: a picture cannot be read.
        """
        settings = self._settings
        images = [image_from_message(self._newest(topic)) for topic in (settings.static_topic, settings.gripper_topic)]
        state = None
        if settings.pose_topic is not None:
            state = state_from_pose(self._newest(settings.pose_topic).pose, self._gripper)
        return Observation(
            static=fit_camera(settings.static_topic, images[0], STATIC_IMAGE_SHAPE, settings.resize),
            gripper=fit_camera(settings.gripper_topic, images[1], GRIPPER_IMAGE_SHAPE, settings.resize),
            state=state,
        )

    def apply(self, action: Float32) -> None:
        """Publish the speed of one control step, and the gripper when it is commanded otherwise than before.

        Raises:
            ContractError: it rotates and there is no `pose_topic`.
            BackendUnavailableError: the pose is silent or old.
        """
        topic = self._settings.pose_topic
        euler_rad = None if topic is None else state_from_pose(self._newest(topic).pose, self._gripper)[3:POSE_SIZE]
        linear, angular = twist_of_action(action, self._settings.rate_hz, euler_rad)
        gripper = float(action[POSE_SIZE])
        if gripper not in (GRIPPER_KEEP, self._gripper):
            message = self._gripper_type()
            opens = gripper == GRIPPER_OPEN
            message.data = [self._settings.gripper_open if opens else self._settings.gripper_closed]
            self._grippers.publish(message)
            self._gripper = gripper
        self._has_moved = True
        self._publish(linear, angular)

    def stop(self) -> None:
        """Publish zero speed; the gripper keeps its last command."""
        self._publish((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))

    def _publish(self, linear: tuple[float, float, float], angular: tuple[float, float, float]) -> None:
        message = self._twist_type()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.header.frame_id = self._settings.frame
        for vector, values in ((message.twist.linear, linear), (message.twist.angular, angular)):
            vector.x, vector.y, vector.z = values
        self._twists.publish(message)

    def _receiver(self, topic: str) -> Any:
        def receive(message: Any) -> None:
            taken_s = time.monotonic() - self._stamp_age_s(message)
            with self._lock:
                self._latest[topic] = (taken_s, message)

        return receive

    def _stamp_age_s(self, message: Any) -> float:
        """Return how long ago a message was stamped; 0.0 for one without a stamp."""
        stamp = message.header.stamp
        stamped_ns = 1_000_000_000 * int(stamp.sec) + int(stamp.nanosec)
        if not self._settings.uses_stamps or stamped_ns == 0:
            return 0.0
        return 1e-9 * (time.time_ns() - stamped_ns)

    def _newest(self, topic: str) -> Any:
        ends_s = time.monotonic() + self._settings.max_age_s
        while True:
            with self._lock:
                taken_s, message = self._latest.get(topic, (-math.inf, None))
            now_s = time.monotonic()
            # A stamp from the future is another clock's: nothing is known of the age of its frame.
            if abs(now_s - taken_s) <= self._settings.max_age_s:
                return message
            if self._has_moved or now_s > ends_s:  # only before the first action is there time to wait for a camera
                raise BackendUnavailableError(
                    f"topic {topic}",
                    got=_said_of_age(message, now_s - taken_s),
                    expected=f"one in {self._settings.max_age_s:g} s",
                    remedy="Check that it is published (ros2 topic hz), that the camera is not frozen, and that both "
                    "machines' clocks agree; Ros2Settings.uses_stamps=False counts from arrival.",
                )
            time.sleep(0.01)


def _said_of_age(message: Any, age_s: float) -> str:
    if message is None:
        return "no message"
    return f"none newer than {age_s:.1f} s" if age_s > 0 else f"a stamp {-age_s:.1f} s ahead of this clock"
