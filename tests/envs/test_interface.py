"""The environment registry, and that looking at it costs no simulator."""

import subprocess
import sys

from rfedge.envs import make_environment
from rfedge.errors import ConfigError
from tests.errors import raises


def test_unknown_environment_proposes_the_nearest_name() -> None:
    with raises(ConfigError, expected="...did you mean 'playtable'..."):
        make_environment("playtabel")


def test_importing_envs_and_demonstrations_imports_no_simulator() -> None:
    code = "import sys, rfedge.benchmarks.success.demonstrations, rfedge.envs.experts; assert 'mujoco' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
