"""Conventions that data, policy and robot must share: camera geometry, control rate, rotations."""
