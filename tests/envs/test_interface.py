"""The environment registry, and that looking at it costs no simulator."""

import subprocess
import sys

from rfedge.envs import Environment, make_environment
from rfedge.errors import ConfigError
from tests.errors import raises


def test_unknown_environment_proposes_the_nearest_name() -> None:
    with raises(ConfigError, expected="...did you mean 'playtable'..."):
        make_environment("playtabel")


def test_unknown_scene_is_refused() -> None:
    with raises(ConfigError, expected="one of A, B, C, D"):
        make_environment("playtable", scene="E")


def test_importing_envs_and_demonstrations_imports_no_simulator() -> None:
    code = "import sys, rfedge.benchmarks.success.demonstrations, rfedge.envs.experts; assert 'mujoco' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_playtable_is_an_environment(physics: Environment) -> None:
    assert isinstance(physics, Environment)
    assert physics.control_hz == 30
    assert physics.renderer == "none"


def test_an_environment_without_cameras_refuses_to_observe(physics: Environment) -> None:
    with raises(ConfigError, remedy="...render=True..."):
        physics.observe()
