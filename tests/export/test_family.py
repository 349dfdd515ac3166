"""Every head, fusion and memory through the exporter and ONNX Runtime."""

from pathlib import Path

import numpy as np
import pytest

from rfedge.data import CalvinDataset
from rfedge.errors import ContractError
from rfedge.export.options import ExportOptions
from rfedge.export.pipeline import export_checkpoint
from rfedge.messages import Observation
from rfedge.runtimes import EdgePolicy
from tests.errors import raises
from tests.export.conftest import write_checkpoint
from tests.model.family import CHANGES, member
from tests.tolerances import assert_same_in_fp32, fp32_tolerance, policy_terms

NUM_STEPS = 12  # more than twice the window of 5


# each of these is also a part of a member with more changes, and the suite has ten minutes
ALONE = ("gpt", "mlp", "mlp-with-history", "proprioception", "two-way", "pre")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in ALONE else ()) for name in CHANGES])
def test_the_bundle_acts_like_the_policy(name: str, demonstrations: Path, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", member(name))
    options = ExportOptions(precision="fp32", data=demonstrations, num_parity_steps=NUM_STEPS)
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", options)
    assert bundle.manifest.parity.passed
    terms = policy_terms(bundle.policy)
    assert bundle.manifest.parity.metrics["action_max_error"] < fp32_tolerance(terms)
    dataset = CalvinDataset.open(demonstrations)
    with EdgePolicy.load(bundle.root) as edge, EdgePolicy.load(checkpoint, backend="torch") as reference:
        states = [edge.initial_state(), reference.initial_state()]
        for number in dataset.frame_numbers()[:NUM_STEPS]:
            frame = dataset.frame(number, ("rgb_static", "rgb_gripper", "robot_obs"))
            observation = Observation(frame["rgb_static"], frame["rgb_gripper"], frame["robot_obs"])
            results = [
                policy.infer(observation, "pull the drawer open", state)
                for policy, state in zip((edge, reference), states, strict=True)
            ]
            states = [result.state for result in results]
            assert_same_in_fp32(results[0].actions, results[1].actions, terms)
            assert_same_in_fp32(states[0].media, states[1].media, terms)


@pytest.mark.parametrize("name", ["mlp-with-history", pytest.param("proprioception", marks=pytest.mark.slow)])
def test_int8(name: str, demonstrations: Path, tmp_path: Path) -> None:
    """Calibration gives older frames and the robot's state as a robot would."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", member(name))
    options = ExportOptions(precision="int8", data=demonstrations, num_calibration_frames=16, num_parity_steps=NUM_STEPS)
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", options)
    assert bundle.manifest.parity.passed
    assert bundle.manifest.parity.metrics["min_feature_cosine"] > 0.99


def test_a_policy_with_proprioception_needs_the_robots_state(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", member("proprioception"))
    observation = Observation(np.zeros((200, 200, 3), np.uint8), np.zeros((84, 84, 3), np.uint8))
    with EdgePolicy.load(checkpoint, backend="torch") as policy, raises(ContractError, "observation.state", got="None"):
        policy.infer(observation, "pull the drawer open", policy.initial_state())
