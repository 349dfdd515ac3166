"""Whether CALVIN's simulator can be started here, and by which interpreter."""

import importlib.util
import os
import sys

import pytest

from rfedge.envs.calvin.environment import PYTHON_VARIABLE


def calvin_python() -> str:
    """Return the interpreter that has calvin_env, or skip.

    Who sets the variable says that it is installed: what goes wrong from there on is a failure and no reason to skip.
    """
    chosen = os.environ.get(PYTHON_VARIABLE)
    if chosen is None and importlib.util.find_spec("calvin_env") is None:
        pytest.skip(f"calvin_env is not installed here and {PYTHON_VARIABLE} is not set")
    return chosen or sys.executable
