"""Rotations in numpy: fixed-axis xyz Euler angles, matrices, rotation vectors, and quaternions in xyzw order.

The Euler convention is CALVIN's (PyBullet's getEulerFromQuaternion, scipy's lower-case "xyz"): first about the world x
axis, then y, then z, so the matrix is Rz @ Ry @ Rx.

A small step of Euler angles is no rotation vector: its axes are those of the present orientation, not the world's.
`rotation_vectors` and `euler_steps` turn one into the other; functions with a plural name take rows on any leading axes.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = [
    "euler_steps",
    "euler_to_matrix",
    "euler_to_quaternion",
    "matrix_to_euler",
    "matrix_to_quaternion",
    "quaternion_to_matrix",
    "quaternions_to_euler",
    "rotation_about",
    "rotation_vector",
    "rotation_vectors",
    "vectors_to_euler",
    "wrap_angle",
]

Float64Array = npt.NDArray[np.float64]


def wrap_angle(angle_rad: Float64Array | float) -> Float64Array:
    """Return the same angles within [-pi, pi)."""
    return np.asarray((np.asarray(angle_rad, dtype=np.float64) + math.pi) % (2.0 * math.pi) - math.pi)


def euler_to_matrix(euler_rad: Float64Array) -> Float64Array:
    """Turn fixed-axis xyz angles (..., 3) into rotation matrices (..., 3, 3)."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(euler_rad).T, np.sin(euler_rad).T
    columns = np.array(
        [
            [cz * cy, sz * cy, -sy],
            [cz * sy * sx - sz * cx, sz * sy * sx + cz * cx, cy * sx],
            [cz * sy * cx + sz * sx, sz * sy * cx - cz * sx, cy * cx],
        ],
        dtype=np.float64,
    )
    return np.ascontiguousarray(columns.T)


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


def quaternions_to_euler(quaternions_xyzw: Float64Array) -> Float64Array:
    """Turn (..., 4) quaternions of any length but zero into (..., 3) angles in rad."""
    x, y, z, w = np.moveaxis(quaternions_xyzw / np.linalg.norm(quaternions_xyzw, axis=-1, keepdims=True), -1, 0)
    return np.stack(
        (
            np.arctan2(2.0 * (w * x + y * z), 1.0 - 2.0 * (x * x + y * y)),
            np.arcsin(np.clip(2.0 * (w * y - z * x), -1.0, 1.0)),
            np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z)),
        ),
        axis=-1,
    )


def vectors_to_euler(vectors_rad: Float64Array) -> Float64Array:
    """Turn (..., 3) axes times angles into (..., 3) angles in rad."""
    return quaternions_to_euler(_vectors_to_quaternions(vectors_rad))


def rotation_vectors(euler_rad: Float64Array, steps_rad: Float64Array) -> Float64Array:
    """Return (..., 3) axis times angle, in the world frame, that leads from `euler_rad` to `euler_rad + steps_rad`.

    It is the rotation vector of R(e + step) R(e)^T: what a twist or a Cartesian delta of a robot means by a rotation.
    """
    before, after = _euler_to_quaternions(euler_rad), _euler_to_quaternions(euler_rad + steps_rad)
    turn = _multiply(after, before * np.array([-1.0, -1.0, -1.0, 1.0]))
    turn = np.where(turn[..., 3:] < 0.0, -turn, turn)  # the shorter way round
    sine = np.linalg.norm(turn[..., :3], axis=-1, keepdims=True)
    angle_rad = 2.0 * np.arctan2(sine, turn[..., 3:])
    return np.asarray(turn[..., :3] * np.where(sine < 1e-12, 2.0, angle_rad / np.maximum(sine, 1e-12)))


def euler_steps(euler_rad: Float64Array, vectors_rad: Float64Array) -> Float64Array:
    """Return (..., 3) steps of the Euler angles that make the world-frame rotations `vectors_rad` (axis times angle).

    The inverse of `rotation_vectors`: euler(exp(r) R(e)) - e, each angle along the shorter way round.
    """
    turned = _multiply(_vectors_to_quaternions(vectors_rad), _euler_to_quaternions(euler_rad))
    return wrap_angle(quaternions_to_euler(turned) - euler_rad)


def _vectors_to_quaternions(vectors_rad: Float64Array) -> Float64Array:
    half_rad = 0.5 * np.linalg.norm(vectors_rad, axis=-1, keepdims=True)
    # np.sinc(x) is sin(pi x) / (pi x): finite at zero, where the quotient is not.
    return np.concatenate((0.5 * vectors_rad * np.sinc(half_rad / np.pi), np.cos(half_rad)), axis=-1)


def _euler_to_quaternions(euler_rad: Float64Array) -> Float64Array:
    (cx, cy, cz), (sx, sy, sz) = (np.moveaxis(part(0.5 * np.asarray(euler_rad)), -1, 0) for part in (np.cos, np.sin))
    return np.stack(
        (
            sx * cy * cz - cx * sy * sz,
            cx * sy * cz + sx * cy * sz,
            cx * cy * sz - sx * sy * cz,
            cx * cy * cz + sx * sy * sz,
        ),
        axis=-1,
    )


def _multiply(left: Float64Array, right: Float64Array) -> Float64Array:
    """Return the quaternion that turns by `right`, then by `left`."""
    a, b = left[..., :3], right[..., :3]
    vector = left[..., 3:] * b + right[..., 3:] * a + np.cross(a, b)
    return np.concatenate((vector, left[..., 3:] * right[..., 3:] - (a * b).sum(axis=-1, keepdims=True)), axis=-1)
