"""Euler, quaternion and matrix forms of the same rotation agree."""

import math

import numpy as np
import pytest

from rfedge.robot import rotations


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


def test_a_step_of_euler_angles_is_another_rotation_in_every_posture() -> None:
    euler = np.array([[0.0, 0.0, np.pi / 2], [3.09, -0.03, 1.5], [0.3, 1.4, -2.0]])
    for row in euler:
        for step in 0.05 * np.eye(3):
            turn = rotations.rotation_vectors(row, step)
            right = rotations.rotation_vector(rotations.euler_to_matrix(row + step) @ rotations.euler_to_matrix(row).T)
            np.testing.assert_allclose(turn, right, atol=1e-12)
            np.testing.assert_allclose(rotations.euler_steps(row, turn), step, atol=1e-9)
    steps = np.random.default_rng(0).uniform(-0.05, 0.05, (3, 3))
    rows = [rotations.rotation_vectors(row, step) for row, step in zip(euler, steps, strict=True)]
    np.testing.assert_array_equal(rotations.rotation_vectors(euler, steps), rows)
    np.testing.assert_array_equal(rotations.rotation_vectors(euler, 0.0 * steps), 0.0 * steps)


def test_a_turn_about_the_worlds_x_axis_is_a_pitch_for_a_tool_turned_by_a_quarter() -> None:
    """For R = Rz(90 degrees) and r = (0.025, 0, 0) rad, as robosuite commands it, the step is (0, -0.5, 0) units."""
    step = rotations.euler_steps(np.array([0.0, 0.0, np.pi / 2]), np.array([0.025, 0.0, 0.0]))
    np.testing.assert_allclose(step / 0.05, [0.0, -0.5, 0.0], atol=1e-12)
