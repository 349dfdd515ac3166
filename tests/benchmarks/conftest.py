"""The tables of the environments' tests."""

from tests.envs.conftest import physics, playtable

__all__ = ["physics", "playtable"]
