"""The arm's kinematics against CALVIN's recorded neutral pose, and the inverse against the forward."""

import numpy as np
import pytest

from rfedge.data.robot import LOWER_RAD, UPPER_RAD
from rfedge.envs.playtable.robot import NEUTRAL_RAD, forward, inverse, tcp_pose


def test_neutral_tcp_is_calvins() -> None:
    recorded = [0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585]
    np.testing.assert_allclose(tcp_pose(NEUTRAL_RAD), recorded, atol=2e-7)


def test_jacobian_matches_finite_differences() -> None:
    position, _, jacobian = forward(NEUTRAL_RAD)
    for joint in range(7):
        moved = NEUTRAL_RAD.copy()
        moved[joint] += 1e-6
        np.testing.assert_allclose((forward(moved)[0] - position) / 1e-6, jacobian[:3, joint], atol=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_inverse_reaches_poses_over_the_table(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pose = tcp_pose(NEUTRAL_RAD)
    pose[:3] = rng.uniform([-0.2, -0.3, 0.45], [0.25, 0.0, 0.6])
    pose[5] += rng.uniform(-0.6, 0.6)
    joints = inverse(pose, NEUTRAL_RAD, iterations=80)
    assert (joints >= LOWER_RAD).all()
    assert (joints <= UPPER_RAD).all()
    np.testing.assert_allclose(tcp_pose(joints)[:3], pose[:3], atol=1e-3)


def test_inverse_of_an_unreachable_pose_stays_finite_and_within_limits() -> None:
    pose = tcp_pose(NEUTRAL_RAD)
    pose[:3] = (3.0, 3.0, 3.0)
    joints = inverse(pose, NEUTRAL_RAD, iterations=50)
    assert np.isfinite(joints).all()
    assert (joints >= LOWER_RAD).all()
    assert (joints <= UPPER_RAD).all()
