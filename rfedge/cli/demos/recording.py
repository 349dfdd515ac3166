"""Recorder of `rfedge demos`: the world and the policy that a process opens once and uses for all its rollouts."""

from __future__ import annotations

import functools
import importlib
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.util import Finalize
from typing import Annotated, Any, Final

from rfedge.benchmarks.success.demonstrations import RecordingOptions, record_episode
from rfedge.bundle.artifact import MANIFEST_NAME, hash_file
from rfedge.data.collection.collect import Episode
from rfedge.envs.interface import ENVIRONMENTS, Environment, make_environment
from rfedge.envs.language import PARAPHRASES
from rfedge.envs.looks import LOOKS_HELP, RENDERER_HELP, Looks, Renderer
from rfedge.errors import ConfigError, ContractError
from rfedge.records.plan import Option, Uses
from rfedge.runtimes.control.controllers import choose_loop
from rfedge.runtimes.control.modes import Controller
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.rollout.policy_source import PolicyLoop

_LIBRARIES: Final = {"playtable": ("mujoco",)}  # other environments report their versions themselves


@dataclass(frozen=True, slots=True)
class Recorder:
    """Records a rollout when called with task and seed; it travels to worker processes."""

    environment: Annotated[str, Option("playtable or calvin.", flag="--env", panel="Episodes", choices=ENVIRONMENTS)] = (
        "playtable"
    )
    scene: Annotated[str, Option("CALVIN scene.")] = "D"
    options: RecordingOptions = field(default_factory=RecordingOptions)  # noise, chains and lengths
    policy: Annotated[PolicyLoop | None, Uses("bundle", "mode", "execute_steps", panel="A policy drives")] = None
    looks: Annotated[Looks | None, Option(LOOKS_HELP, panel="Episodes")] = None
    renderer: Annotated[Renderer | None, Option(RENDERER_HELP)] = None

    def __call__(self, task: str, seed: int) -> Episode:
        return record_episode(
            task,
            scene=self.scene,
            seed=seed,
            environment=_open_environment(self.environment, self.scene, self.looks, self.renderer),
            options=self.options,
            driver=None if self.policy is None else _open_driver(self.policy)[1],
        )

    def describe(self, tasks: Iterable[str], *, keep_open: bool) -> tuple[dict[str, Any], dict[str, str]]:
        """Open simulator and policy; return what decides a rollout, as JSON values, and the versions behind it.

        The policy must know the instructions of `tasks`; `keep_open` where this process is going to record.
        """
        environment = _open_environment(self.environment, self.scene, self.looks, self.renderer)
        noise = self.options.noise
        settings: dict[str, Any] = {
            "environment": self.environment,
            "renderer": environment.renderer,
            "looks": environment.looks,
            "chain_length": self.options.chain_length,
            "max_steps": self.options.max_steps,
            "action_noise": 0.0 if noise is None else noise.scale,
            "noise_share": 0.0 if noise is None else noise.share,
            "policy": None,
        }
        if self.options.at_spots:
            settings["at_spots"] = True
        libraries = ["numpy", *_LIBRARIES.get(self.environment, ())]
        if self.policy is not None:
            policy, driver = _open_driver(self.policy)
            _check_instructions(driver, tasks)
            mode, execute_steps = choose_loop(policy, self.policy.mode, self.policy.execute_steps)
            settings["policy"] = {
                "name": policy.config.name,
                "precision": policy.parts.precision,
                "manifest_sha256": hash_file(self.policy.bundle / MANIFEST_NAME),
                "mode": mode,
                "execute_steps": execute_steps,
                "expert_share": self.options.expert_share,
                "takeover_steps": self.options.takeover_steps,
            }
            libraries.append("onnxruntime")
            if not keep_open:
                policy.close()
                _open_driver.cache_clear()
        # Asked of the modules: a distribution may have another name, as onnxruntime-gpu has.
        versions = {name: str(importlib.import_module(name).__version__) for name in libraries}
        versions = {"python": platform.python_version(), **versions, **getattr(environment, "versions", {})}
        if not keep_open:
            environment.close()
            _open_environment.cache_clear()
        return settings, versions


def _check_instructions(driver: Controller, tasks: Iterable[str]) -> None:
    """Let the policy take every instruction of `tasks`, so that a collection does not end half-way at a long one."""
    task = instruction = ""
    try:
        for task in tasks:
            for instruction in PARAPHRASES[task]:
                driver.reset(instruction)
    except ContractError as error:
        raise ConfigError(
            f"instruction {instruction!r}",
            got=f"a policy that refuses it ({error})",
            expected="one that takes every instruction of its tasks",
            remedy=f"Leave {task} out of --tasks, or train with a longer text.",
        ) from None


@functools.cache  # one per process; a rollout does not depend on those before it
def _open_environment(name: str, scene: str, looks: Looks | None, renderer: Renderer | None) -> Environment:
    environment = make_environment(name, looks=looks, renderer=renderer, scene=scene)
    # Not atexit, which worker processes skip.
    Finalize(None, environment.close, exitpriority=0)
    return environment


@functools.cache
def _open_driver(policy: PolicyLoop) -> tuple[EdgePolicy, Controller]:
    return policy.open()
