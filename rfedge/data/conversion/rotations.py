"""Rows of rotations in the forms that datasets use, turned into fixed-axis xyz Euler angles, as CALVIN stores them."""

from __future__ import annotations

import numpy as np

from rfedge.data.actions import Float64Array

__all__ = ["axis_angle_to_euler", "quaternion_to_euler"]


def quaternion_to_euler(quaternions_xyzw: Float64Array) -> Float64Array:
    """Turn (T, 4) quaternions of any length but zero into (T, 3) angles in rad."""
    x, y, z, w = (quaternions_xyzw / np.linalg.norm(quaternions_xyzw, axis=1, keepdims=True)).T
    return np.stack(
        (
            np.arctan2(2.0 * (w * x + y * z), 1.0 - 2.0 * (x * x + y * y)),
            np.arcsin(np.clip(2.0 * (w * y - z * x), -1.0, 1.0)),
            np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z)),
        ),
        axis=1,
    )


def axis_angle_to_euler(vectors_rad: Float64Array) -> Float64Array:
    """Turn (T, 3) axes times angles into (T, 3) angles in rad."""
    half_rad = 0.5 * np.linalg.norm(vectors_rad, axis=1, keepdims=True)
    # np.sinc(x) is sin(pi x) / (pi x): finite at zero, where the quotient is not.
    return quaternion_to_euler(np.concatenate((0.5 * vectors_rad * np.sinc(half_rad / np.pi), np.cos(half_rad)), axis=1))
