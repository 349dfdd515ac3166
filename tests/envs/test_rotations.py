"""Euler, quaternion and matrix forms of the same rotation agree."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rfedge.envs import rotations


@pytest.mark.parametrize("seed", range(20))
def test_round_trips(seed: int) -> None:
    euler = np.random.default_rng(seed).uniform([-math.pi, -1.5, -math.pi], [math.pi, 1.5, math.pi])
    matrix = rotations.euler_to_matrix(euler)
    assert np.linalg.det(matrix) == pytest.approx(1.0)
    np.testing.assert_allclose(rotations.matrix_to_euler(matrix), euler, atol=1e-9)
    quaternion = rotations.euler_to_quaternion(euler)
    assert quaternion[3] >= 0
    np.testing.assert_allclose(rotations.quaternion_to_matrix(quaternion), matrix, atol=1e-12)
    np.testing.assert_allclose(rotations.quaternion_to_matrix(-2.0 * quaternion), matrix, atol=1e-12)


def test_euler_angles_turn_about_fixed_axes_in_the_order_x_y_z() -> None:
    quarter = math.pi / 2
    turned = rotations.euler_to_matrix(np.array([quarter, 0.0, quarter])) @ np.array([0.0, 1.0, 0.0])
    np.testing.assert_allclose(turned, [0.0, 0.0, 1.0], atol=1e-12)


def test_euler_at_the_pole_is_still_the_same_rotation() -> None:
    matrix = rotations.euler_to_matrix(np.array([0.3, math.pi / 2, 0.8]))
    np.testing.assert_allclose(rotations.euler_to_matrix(rotations.matrix_to_euler(matrix)), matrix, atol=1e-7)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.4, 3.0])
def test_rotation_vector_inverts_rotation_about(angle: float) -> None:
    axis = np.array([2.0, -1.0, 2.0]) / 3.0
    np.testing.assert_allclose(rotations.rotation_vector(rotations.rotation_about(axis, angle)), angle * axis, atol=1e-9)


def test_wrap_angle() -> None:
    np.testing.assert_allclose(
        rotations.wrap_angle(np.array([math.pi, 3.5, -3.5, 0.1])), [-math.pi, 3.5 - math.tau, math.tau - 3.5, 0.1]
    )
