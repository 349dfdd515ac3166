"""A policy as what drives a recording: safe actions, one thread, and the same actions as in its control loop."""

from pathlib import Path

import numpy as np
import pytest

from rfedge.benchmarks.relabelling import PolicyChoice, PolicyDriver
from rfedge.bundle import hash_file
from rfedge.errors import ArtifactError, ConfigError
from rfedge.messages import Observation, check_action
from rfedge.runtimes import EdgePolicy, make_controller
from tests.runtimes.handmade_bundle import INSTRUCTIONS, tiny_config, write_handmade_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "b"
    write_handmade_bundle(path, tiny_config(chunk_size=4))
    return path


def observations(count: int) -> list[Observation]:
    rng = np.random.default_rng(0)
    return [
        Observation(rng.integers(0, 256, (200, 200, 3), np.uint8), rng.integers(0, 256, (84, 84, 3), np.uint8))
        for _ in range(count)
    ]


@pytest.mark.parametrize(("mode", "execute_steps"), [("closed-loop", None), ("open-loop", 3)])
def test_it_sends_what_the_policy_would_in_its_loop(bundle: Path, mode: str, execute_steps: int | None) -> None:
    seen = observations(7)
    with PolicyDriver(PolicyChoice(bundle, mode, execute_steps)) as driver, EdgePolicy.load(bundle) as policy:
        controller = make_controller(policy, mode, execute_steps)
        for instruction in INSTRUCTIONS[:2]:  # the second reset forgets the first
            driver.reset(instruction)
            controller.reset(instruction)
            for observation in seen:
                action = driver.act(observation)
                check_action(action[None])
                assert action.dtype == np.float64
                expected = controller.control(observation if controller.needs_observation else None).action
                np.testing.assert_allclose(action, expected, atol=1e-5)


def test_it_says_who_it_is(bundle: Path) -> None:
    with PolicyDriver(PolicyChoice(bundle, "open-loop")) as driver:
        facts = driver.describe()
    assert facts["manifest_sha256"] == hash_file(bundle / "manifest.json")
    assert (facts["mode"], facts["execute_steps"], facts["precision"]) == ("open-loop", 4, "fp32")


def test_what_cannot_drive_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="got no folder"):
        PolicyDriver(PolicyChoice(tmp_path / "none"))
    with pytest.raises(ConfigError, match="did you mean 'open-loop'"):
        PolicyDriver(PolicyChoice(bundle, "openloop"))
    with pytest.raises(ConfigError, match=r"execute_steps: got 5, expected 1 to 4"):
        PolicyDriver(PolicyChoice(bundle, "open-loop", 5))
