"""Environments shared by a whole test module, and scene snapshots built by hand."""

from collections.abc import Iterator

import pytest

from rfedge.envs import Environment, make_environment


@pytest.fixture(scope="session")
def playtable() -> Iterator[Environment]:
    """Scene D with cameras."""
    with make_environment("playtable", scene="D") as environment:
        yield environment


@pytest.fixture(scope="session")
def physics() -> Iterator[Environment]:
    """Scene D without cameras."""
    with make_environment("playtable", scene="D", render=False) as environment:
        yield environment
