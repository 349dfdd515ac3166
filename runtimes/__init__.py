"""Bundles to actions: graph runners, the policy around them, and the loops that drive a robot or simulator.

Read `policy.py` first. Importing this package loads neither torch nor a simulator nor any inference library: a
backend is imported when its name is asked for, and so is everything named here, because a client of a policy server
needs little of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rfedge.runtimes.base import GraphRunner, RuntimeSettings
    from rfedge.runtimes.clock import RateKeeper
    from rfedge.runtimes.controllers import make_controller
    from rfedge.runtimes.modes import ClosedLoop, Controller, OpenLoop
    from rfedge.runtimes.policy import EdgePolicy
    from rfedge.runtimes.policy_step import STAGES, Policy, PolicyStep
    from rfedge.runtimes.rollout import Rollout, roll_out

__all__ = [
    "STAGES",
    "ClosedLoop",
    "Controller",
    "EdgePolicy",
    "GraphRunner",
    "OpenLoop",
    "Policy",
    "PolicyStep",
    "RateKeeper",
    "Rollout",
    "RuntimeSettings",
    "make_controller",
    "roll_out",
]

# name -> the module below this package that it is imported from when it is first used
_MODULES: Final = {
    "STAGES": "policy_step",
    "ClosedLoop": "modes",
    "Controller": "modes",
    "EdgePolicy": "policy",
    "GraphRunner": "base",
    "OpenLoop": "modes",
    "Policy": "policy_step",
    "PolicyStep": "policy_step",
    "RateKeeper": "clock",
    "Rollout": "rollout",
    "RuntimeSettings": "base",
    "make_controller": "controllers",
    "roll_out": "rollout",
}


def __getattr__(name: str) -> Any:
    """Import what `__all__` names when it is asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
