"""rfedge: take a RoboFlamingo-style policy from checkpoint to a robot's own computer, and prove it still works there."""

__version__ = "0.1.0"
