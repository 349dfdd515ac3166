"""What data, policy and robot must have alike: camera geometry, control rate, rotations."""
