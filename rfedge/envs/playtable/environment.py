"""The PlayTable environment: CALVIN's observations, actions and scene states on a MuJoCo table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rfedge.envs.interface import (
    BLOCKS,
    CAMERAS,
    SCENE_STATE_SIZE,
    TABLE,
    BlockState,
    Camera,
    Contact,
    Environment,
    Float64Array,
    SceneInfo,
    check_state,
)
from rfedge.envs.looks import Looks, check_looks
from rfedge.envs.playtable.layout import BUTTON_TRIGGER_M, SWITCH_TRIGGER_M, find_layout
from rfedge.envs.playtable.looks import Wardrobe
from rfedge.envs.playtable.model import SUBSTEPS, load_model
from rfedge.envs.playtable.placement import block_slice, sample_scene
from rfedge.envs.playtable.robot import NEUTRAL_ROBOT_OBS, RobotControl
from rfedge.envs.playtable.simulator import Cameras, load_mujoco
from rfedge.errors import ConfigError
from rfedge.messages import STATE_SIZE, Observation, UInt8Array
from rfedge.robot.rotations import euler_to_quaternion, matrix_to_euler, quaternion_to_matrix

_JOINTS = ("base__slide", "base__drawer", "base__button", "base__switch")
_SETTLE_STEPS = 2  # after restoring a state; CALVIN runs one step of 1/240 s
_LIGHT_RGBA = {
    ("lightbulb", False): (1.0, 1.0, 1.0, 1.0),
    ("lightbulb", True): (1.0, 1.0, 0.0, 1.0),
    ("led", False): (1.0, 1.0, 1.0, 1.0),
    ("led", True): (0.0, 1.0, 0.0, 1.0),
}


class PlayTable(Environment):
    """One table with its arm; see `rfedge.envs.interface.Environment` for what each method promises.

    The same scene, seed and calls give bit-identical states in every process on the same machine, and a restored state
    forgets everything that came before it.
    """

    def __init__(
        self, scene: str = "D", *, seed: int = 0, render: bool = True, task: str = "", looks: Looks = "playtable"
    ) -> None:
        """Build the scene.

        Args:
            scene: "A" to "D".
            seed: decides the block poses of every `reset()` without arguments.
            render: False leaves out the cameras; `observe`, `reset` and `step` then raise, `restore` and `advance` work.
            looks: what the cameras see; "calvin" takes the meshes and textures of an installed calvin_env, see
                `rfedge.envs.calvin.installation.find_data`; "random" begins as `seed` says and changes with `redress`.

        Raises:
            ArtifactError: a file of calvin_env cannot be read.
            ConfigError: the scene or the looks are unknown.
            BackendUnavailableError: MuJoCo, its renderer or the calvin_env that the looks need is missing.
        """
        self._layout = find_layout(scene)
        self.scene, self.block_order, self.looks = scene, self._layout.block_order, check_looks(looks)
        self.task = task
        self._rng = np.random.default_rng(seed)
        self._mujoco = load_mujoco()
        self._model: Any = load_model(self._mujoco, self._layout, self.looks if render else "playtable")
        self._data: Any = self._mujoco.MjData(self._model)
        self._robot = RobotControl(self._model)
        self._cameras = Cameras(self._model) if render else None
        self.renderer = self._cameras.backend if self._cameras else "none"
        self._wardrobe = Wardrobe(self._mujoco, self._model, self._layout) if render and looks == "random" else None
        self.redress((seed,))
        self._joint_qpos = {name: int(self._model.joint(name).qposadr[0]) for name in _JOINTS}
        self._block_qpos = {name: int(self._model.joint(name).qposadr[0]) for name in BLOCKS}
        self._block_dofs = {name: int(self._model.joint(name).dofadr[0]) for name in BLOCKS}
        names = [self._model.body(int(body)).name.partition("/") for body in self._model.geom_bodyid]
        self._owners: list[Contact] = [(body, link) for body, _, link in names]
        self._light_geoms = {
            light: [geom for geom, owner in enumerate(self._owners) if owner == (TABLE, link)]
            for light, link in (("lightbulb", "light_link"), ("led", "led_link"))
        }
        self._step_s = float(self._model.opt.timestep)
        self._lights = {"lightbulb": False, "led": False}
        self._button_pressed = False
        self._switch_up = False
        self.restore()

    def redress(self, seed: Sequence[int]) -> None:
        """Sample other random looks, which `seed` decides; any other looks stay as they are. States do not change."""
        if self._wardrobe is not None and self._cameras is not None:
            self._wardrobe.change(np.random.default_rng(seed))
            self._cameras.upload_textures()
            self._mujoco.mj_camlight(self._model, self._data)

    def restore(self, robot_obs: Float64Array | None = None, scene_obs: Float64Array | None = None) -> None:
        robot_obs = NEUTRAL_ROBOT_OBS if robot_obs is None else check_state("robot_obs", robot_obs, STATE_SIZE)
        if scene_obs is None:
            scene_obs = sample_scene(self._layout, self._rng)
        scene_obs = check_state("scene_obs", scene_obs, SCENE_STATE_SIZE)
        data = self._data
        self._mujoco.mj_resetData(self._model, data)
        for index, name in enumerate(_JOINTS):
            data.qpos[self._joint_qpos[name]] = scene_obs[index]
        for block, start in self._block_qpos.items():
            pose = scene_obs[block_slice(self._layout, block)]
            data.qpos[start : start + 3] = pose[:3]
            data.qpos[start + 3 : start + 7] = np.roll(euler_to_quaternion(pose[3:]), 1)  # MuJoCo stores wxyz
        self._set_light("lightbulb", on=scene_obs[4] > 0.5)
        self._set_light("led", on=scene_obs[5] > 0.5)
        # Edges are counted from the restored joints: a pressed button does not toggle again until it is released.
        self._button_pressed = scene_obs[2] > BUTTON_TRIGGER_M
        self._switch_up = scene_obs[3] > SWITCH_TRIGGER_M
        self._robot.restore(data, robot_obs)
        self._mujoco.mj_step(self._model, data, nstep=_SETTLE_STEPS)
        self._robot.anchor(data)
        self._refresh()

    def _refresh(self) -> None:
        # Contacts and body poses of the state just reached; a step leaves those of the state before it.
        self._mujoco.mj_forward(self._model, self._data)

    def advance(self, action: Float64Array) -> None:
        self._robot.command(self._data, action)
        for _ in range(SUBSTEPS):
            self._robot.drive(self._data, self._step_s)
            self._mujoco.mj_step(self._model, self._data)
        self._refresh()
        self._update_lights()

    def _update_lights(self) -> None:
        pressed = self._joint("base__button") > BUTTON_TRIGGER_M
        if pressed and not self._button_pressed:
            self._set_light("led", on=not self._lights["led"])
        self._button_pressed = pressed
        switch_up = self._joint("base__switch") > SWITCH_TRIGGER_M
        if switch_up != self._switch_up:
            self._set_light("lightbulb", on=switch_up)
        self._switch_up = switch_up

    def _set_light(self, name: str, *, on: bool) -> None:
        self._lights[name] = bool(on)
        self._model.geom_rgba[self._light_geoms[name]] = _LIGHT_RGBA[name, bool(on)]

    def _joint(self, name: str) -> float:
        return float(self._data.qpos[self._joint_qpos[name]])

    def observe(self) -> Observation:
        static, gripper = (self.draw_camera(camera) for camera in CAMERAS)
        return Observation(static=static, gripper=gripper, state=self.robot_state(), task=self.task)

    def draw_camera(self, camera: Camera) -> UInt8Array:
        if self._cameras is None:
            remedy = "Make the environment with render=True, or use restore and advance."
            raise ConfigError("observe", got="render=False", expected="cameras", remedy=remedy)
        return self._cameras.render(camera, self._data)

    def robot_state(self) -> Float64Array:
        return self._robot.measure(self._data)

    def scene_state(self) -> Float64Array:
        state = np.empty(SCENE_STATE_SIZE)
        state[:4] = [self._joint(name) for name in _JOINTS]
        state[4], state[5] = float(self._lights["lightbulb"]), float(self._lights["led"])
        for block, start in self._block_qpos.items():
            quaternion_xyzw = np.roll(self._data.qpos[start + 3 : start + 7], -1)
            euler = matrix_to_euler(quaternion_to_matrix(quaternion_xyzw))
            state[block_slice(self._layout, block)] = np.concatenate([self._data.qpos[start : start + 3], euler])
        return state

    def info(self) -> SceneInfo:
        touching = self._contacts()
        blocks = {}
        for block in BLOCKS:
            start, dof = self._block_qpos[block], self._block_dofs[block]
            quaternion_xyzw = np.roll(self._data.qpos[start + 3 : start + 7], -1)
            rotation = quaternion_to_matrix(quaternion_xyzw)
            blocks[block] = BlockState(
                position_m=self._data.qpos[start : start + 3].copy(),
                orientation_xyzw=quaternion_xyzw,
                linear_velocity_m_s=self._data.qvel[dof : dof + 3].copy(),
                # MuJoCo keeps the turning rate of a free joint in the body's own axes.
                angular_velocity_rad_s=rotation @ self._data.qvel[dof + 3 : dof + 6],
                contacts=frozenset(touching.get(block, ())),
            )
        return SceneInfo(
            doors={name: self._joint(name) for name in ("base__slide", "base__drawer")},
            buttons={"base__button": self._joint("base__button")},
            switches={"base__switch": self._joint("base__switch")},
            lights=dict(self._lights),
            blocks=blocks,
            robot_contacts=frozenset(touching.get("robot", ())),
        )

    def _contacts(self) -> dict[str, set[Contact]]:
        touching: dict[str, set[Contact]] = {}
        for first, second in self._data.contact.geom[: self._data.ncon]:
            owner, other = self._owners[first], self._owners[second]
            touching.setdefault(owner[0], set()).add(other)
            touching.setdefault(other[0], set()).add(owner)
        return touching

    def close(self) -> None:
        if self._cameras is not None:
            self._cameras.close()
            self._cameras = None
