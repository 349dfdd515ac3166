"""Interface of every environment to policies, experts and the task oracle, in numpy alone.

An environment can be driven in two ways. `reset` and `step` also render and return an `Observation`, which is what a
policy needs; `restore` and `advance` move the same world without rendering, which is what experts and physics tests
need. `reset` is `restore` and then `observe`; `step` is `advance` and then `observe`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Final, Literal, Protocol, TypeVar, cast, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt

from rfedge.envs.looks import Looks, Renderer
from rfedge.errors import ConfigError, ContractError, one_of
from rfedge.messages import ACTION_SIZE, Observation, UInt8Array, check_action

__all__ = [
    "BLOCKS",
    "CAMERAS",
    "CONTROL_HZ",
    "ENVIRONMENTS",
    "ROBOT",
    "ROBOT_STATE_SIZE",
    "SCENE_STATE_SIZE",
    "TABLE",
    "BlockState",
    "Camera",
    "Contact",
    "Environment",
    "EnvironmentIdentity",
    "Float64Array",
    "SceneInfo",
    "check_state",
    "check_step",
    "make_environment",
]

Self = TypeVar("Self", bound="Environment")
Float64Array = npt.NDArray[np.float64]
Camera = Literal["static", "gripper"]
Contact = tuple[str, str]  # the touched (body, link), for instance ("table", "drawer_link")

CAMERAS: Final[tuple[Camera, ...]] = get_args(Camera)
CONTROL_HZ: Final = 30
ROBOT_STATE_SIZE: Final = 15
SCENE_STATE_SIZE: Final = 24
ROBOT: Final = "robot"
TABLE: Final = "table"
BLOCKS: Final = ("block_red", "block_blue", "block_pink")


@dataclass(frozen=True, slots=True, eq=False)
class BlockState:
    """One free block.

    Attributes:
        position_m: (3,) centre in world coordinates.
        orientation_xyzw: (4,) unit quaternion.
        linear_velocity_m_s: (3,).
        angular_velocity_rad_s: (3,) in world axes.
        contacts: everything it touches, as (body, link); never itself.
    """

    position_m: Float64Array
    orientation_xyzw: Float64Array
    linear_velocity_m_s: Float64Array
    angular_velocity_rad_s: Float64Array
    contacts: frozenset[Contact]


@dataclass(frozen=True, slots=True, eq=False)
class SceneInfo:
    """Everything the task oracle looks at, at one moment.

    Attributes:
        doors: joint position in metres of `base__slide` and `base__drawer`.
        buttons: joint position in metres of `base__button`.
        switches: joint position in metres of `base__switch`.
        lights: on or off for `lightbulb` and `led`.
        robot_contacts: everything the robot touches, as (body, link).
    """

    doors: Mapping[str, float]
    buttons: Mapping[str, float]
    switches: Mapping[str, float]
    lights: Mapping[str, bool]
    blocks: Mapping[str, BlockState]
    robot_contacts: frozenset[Contact]


@runtime_checkable
class Environment(Protocol):
    """A tabletop world with one arm, driven at `control_hz`.

    `robot_obs` is float64 (15,): tcp xyz in metres, tcp euler xyz in radians (fixed axes), gripper width in metres,
    7 arm joints in radians, last gripper action (-1 closes, 1 opens). `scene_obs` is float64 (24,): sliding door,
    drawer, button and switch joints in metres, bulb and LED as 0 or 1, then xyz and euler xyz of three blocks in the
    order that `block_order` names.

    Attributes:
        control_hz: control steps per second of simulated time.
        renderer: what renders the images, for instance "egl"; "none" for a world without cameras.
        looks: what the images show, see `rfedge.envs.looks`; images of different looks are not to be compared or mixed up.
        scene: name of the table layout, "A" to "D".
        block_order: the blocks in the order in which `scene_state` lists them.
    """

    control_hz: int = CONTROL_HZ
    renderer: str
    looks: str
    scene: str
    block_order: tuple[str, str, str]

    def restore(self, robot_obs: Float64Array | None = None, scene_obs: Float64Array | None = None) -> None:
        """Set the state as observed, (15,) and (24,), or neutral pose and random blocks; raises ContractError."""

    def reset(self, robot_obs: Float64Array | None = None, scene_obs: Float64Array | None = None) -> Observation:
        """`restore`, then `observe`."""
        self.restore(robot_obs, scene_obs)
        return self.observe()

    def advance(self, action: Float64Array) -> None:
        """Run one control step of a relative action (7,), see `rfedge.messages`, without rendering.

        Raises:
            ContractError: the action is not finite float (7,), a pose component leaves [-1, 1] or the gripper is not
                exactly -1 or 1.
        """

    def step(self, action: Float64Array) -> Observation:
        """`advance`, then `observe`."""
        self.advance(action)
        return self.observe()

    def observe(self) -> Observation:
        """Render both cameras at the present state; raises ConfigError in a world that was made without cameras."""

    def draw_camera(self, camera: Camera) -> UInt8Array:
        """Render one camera: uint8 (200, 200, 3) or (84, 84, 3), RGB."""

    def robot_state(self) -> Float64Array:
        """Return robot_obs, float64 (15,)."""

    def scene_state(self) -> Float64Array:
        """Return scene_obs, float64 (24,)."""

    def info(self) -> SceneInfo:
        """Return what the task oracle compares."""

    def close(self) -> None:
        """Free the simulator and its renderer; a second call does nothing."""

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class EnvironmentIdentity:
    """Conditions that two rollouts must share to count together: a policy's success follows what it sees.

    Attributes:
        name: of `make_environment`, or what a world of one's own is called.
        renderer: what renders the images, or "none".
    """

    name: str
    renderer: str
    looks: str

    @classmethod
    def of(cls, name: str, environment: Environment) -> EnvironmentIdentity:
        return cls(name, environment.renderer, environment.looks)

    def check_same(self, before: EnvironmentIdentity | None) -> EnvironmentIdentity:
        """Return this one, or raise ConfigError where the rollouts `before` were run in another."""
        if before not in (None, self):
            expected = f"{before}, in which this run was begun"
            remedy = "Go on where it was begun, or choose another --output."
            raise ConfigError("environment", got=str(self), expected=expected, remedy=remedy)
        return self

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())


def check_state(name: str, state: Float64Array, size: int) -> Float64Array:
    """Return a copy of `state` as float64 (size,); raises ContractError for another shape, NaN or Inf."""
    state = np.array(state, dtype=np.float64)
    if state.shape != (size,) or not np.isfinite(state).all():
        got = f"shape {state.shape}" if state.shape != (size,) else "NaN or Inf"
        raise ContractError(name, got=got, expected=f"finite ({size},)", remedy="Pass a state as it was observed.")
    return state


def check_step(action: Float64Array) -> Float64Array:
    """Return one action as float64 (7,); raises ContractError, see `rfedge.messages.check_action`."""
    action = np.asarray(action)
    if action.shape != (ACTION_SIZE,):
        remedy = "Send one control step at a time."
        raise ContractError("action", got=f"shape {action.shape}", expected=f"({ACTION_SIZE},)", remedy=remedy)
    check_action(action[np.newaxis])
    return action.astype(np.float64)


# name -> (module, class): the module is imported only when the environment is made.
_ENVIRONMENTS: Final = {
    "playtable": ("rfedge.envs.playtable.environment", "PlayTable"),
    "calvin": ("rfedge.envs.calvin.environment", "CalvinEnvironment"),
}
ENVIRONMENTS: Final = tuple(_ENVIRONMENTS)


def make_environment(
    name: str, *, looks: Looks | None = None, renderer: Renderer | None = None, **options: Any
) -> Environment:
    """Make the environment called `name`; `options` go to its class.

    >>> make_environment("playtabel")
    Traceback (most recent call last):
    rfedge.errors.ConfigError: environment: got 'playtabel', expected one of playtable, calvin (did you mean ...

    Args:
        name: "playtable" or "calvin".
        looks: of a PlayTable; None takes its own.
        renderer: of CALVIN's simulator; None takes EGL.

    Raises:
        ConfigError: no environment has that name, or it has no such choice.
        BackendUnavailableError: its simulator or renderer is not on this machine.
    """
    module_name, class_name = _ENVIRONMENTS[one_of(_ENVIRONMENTS, name, "environment", remedy="Choose a known name.")]
    for option, value, owner in (("looks", looks, "playtable"), ("renderer", renderer, "calvin")):
        if value is None:
            continue
        if name != owner:
            remedy = f"Leave out --{option}, or choose --env {owner}."
            raise ConfigError(option, got=f"{value!r} for {name}", expected=f"a choice for {owner}", remedy=remedy)
        options[option] = value
    return cast(Environment, getattr(importlib.import_module(module_name), class_name)(**options))
