"""Bundles to actions: graph runners, the policy around them, and the loops that drive a robot or simulator.

Read `policy.py` first. Importing this package loads neither torch nor a simulator nor any inference library: a
backend is imported when its name is asked for, and so is everything named here, because a client of a policy server
needs little of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rfedge.runtimes.backends.base import GraphRunner, RuntimeSettings
    from rfedge.runtimes.control.clock import RateKeeper
    from rfedge.runtimes.control.controllers import make_controller
    from rfedge.runtimes.control.modes import ClosedLoop, Controller, OpenLoop
    from rfedge.runtimes.policy.edge_policy import EdgePolicy
    from rfedge.runtimes.policy.step import STAGES, Policy, PolicyStep
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
    "STAGES": "policy.step",
    "ClosedLoop": "control.modes",
    "Controller": "control.modes",
    "EdgePolicy": "policy.edge_policy",
    "GraphRunner": "backends.base",
    "OpenLoop": "control.modes",
    "Policy": "policy.step",
    "PolicyStep": "policy.step",
    "RateKeeper": "control.clock",
    "Rollout": "rollout",
    "RuntimeSettings": "backends.base",
    "make_controller": "control.controllers",
    "roll_out": "rollout",
}


def __getattr__(name: str) -> Any:
    """Import what `__all__` names when it is asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
