"""The control loop: clock, modes, guard, and how it ends."""
