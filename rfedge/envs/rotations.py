"""Rotations in numpy: fixed-axis xyz Euler angles, matrices, and quaternions in xyzw order.

The Euler convention is CALVIN's (PyBullet's getEulerFromQuaternion, scipy's lower-case "xyz"): first about the world x
axis, then y, then z, so the matrix is Rz @ Ry @ Rx.
"""

from __future__ import annotations

import math

import numpy as np

from rfedge.envs.interface import Float64Array

__all__ = [
    "euler_to_matrix",
    "euler_to_quaternion",
    "matrix_to_euler",
    "matrix_to_quaternion",
    "quaternion_to_matrix",
    "rotation_about",
    "rotation_vector",
    "wrap_angle",
]


def wrap_angle(angle_rad: Float64Array | float) -> Float64Array:
    """Return the same angles within [-pi, pi)."""
    return np.asarray((np.asarray(angle_rad) + math.pi) % (2.0 * math.pi) - math.pi, dtype=np.float64)


def euler_to_matrix(euler_rad: Float64Array) -> Float64Array:
    """Turn fixed-axis xyz angles (3,) into a rotation matrix (3, 3)."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(euler_rad), np.sin(euler_rad)
    return np.array(
        [
            [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
            [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
            [-sy, cy * sx, cy * cx],
        ],
        dtype=np.float64,
    )


def matrix_to_euler(matrix: Float64Array) -> Float64Array:
    """Turn a rotation matrix (3, 3) into fixed-axis xyz angles (3,); y lies within +-pi/2."""
    cos_y = math.hypot(matrix[0, 0], matrix[1, 0])
    y = math.atan2(-matrix[2, 0], cos_y)
    if cos_y > 1e-9:
        return np.array([math.atan2(matrix[2, 1], matrix[2, 2]), y, math.atan2(matrix[1, 0], matrix[0, 0])])
    # At the pole only the sum or difference of x and z is known, so x is chosen as zero.
    return np.array([0.0, y, math.atan2(-matrix[0, 1], matrix[1, 1])])


def quaternion_to_matrix(quaternion_xyzw: Float64Array) -> Float64Array:
    """Turn a quaternion (4,) of any length but zero into a rotation matrix (3, 3)."""
    x, y, z, w = quaternion_xyzw / np.linalg.norm(quaternion_xyzw)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ],
        dtype=np.float64,
    )


def matrix_to_quaternion(matrix: Float64Array) -> Float64Array:
    """Turn a rotation matrix (3, 3) into a unit quaternion xyzw (4,) with w >= 0."""
    diagonal = np.diagonal(matrix)
    # Each component squared, up to a factor of four; dividing by the largest is stable for every rotation.
    squares = np.array([1 + 2 * diagonal[i] - diagonal.sum() for i in range(3)] + [1 + diagonal.sum()])
    largest = int(np.argmax(squares))
    quaternion = np.empty(4)
    if largest == 3:
        quaternion[:3] = (matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1])
        quaternion[3] = squares[3]
    else:
        i, j, k = largest, (largest + 1) % 3, (largest + 2) % 3
        quaternion[i] = squares[i]
        quaternion[j] = matrix[j, i] + matrix[i, j]
        quaternion[k] = matrix[k, i] + matrix[i, k]
        quaternion[3] = matrix[k, j] - matrix[j, k]
    quaternion /= np.linalg.norm(quaternion)
    return quaternion if quaternion[3] >= 0 else -quaternion


def euler_to_quaternion(euler_rad: Float64Array) -> Float64Array:
    """Turn fixed-axis xyz angles (3,) into a unit quaternion xyzw (4,)."""
    return matrix_to_quaternion(euler_to_matrix(euler_rad))


def rotation_about(axis: Float64Array, angle_rad: float) -> Float64Array:
    """Return the matrix (3, 3) that turns by `angle_rad` about the unit vector `axis` (3,), by Rodrigues' formula."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    matrix = np.eye(3) + math.sin(angle_rad) * cross + (1.0 - math.cos(angle_rad)) * (cross @ cross)
    return np.asarray(matrix, dtype=np.float64)


def rotation_vector(matrix: Float64Array) -> Float64Array:
    """Return axis times angle (3,) of a rotation matrix (3, 3), for angles below pi."""
    skew = 0.5 * np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    sine = float(np.linalg.norm(skew))
    if sine < 1e-12:
        return skew
    angle_rad = math.atan2(sine, 0.5 * (float(np.trace(matrix)) - 1.0))
    return np.asarray(skew * (angle_rad / sine), dtype=np.float64)
