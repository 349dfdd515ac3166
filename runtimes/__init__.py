"""Bundles to actions: graph runners, the policy around them, and the loops that drive a robot or simulator.

Read `policy.py` first. Importing this package loads neither torch nor a simulator nor any inference library: a
backend is imported when its name is asked for.
"""

from __future__ import annotations

from rfedge.runtimes.base import GraphRunner, RuntimeSettings
from rfedge.runtimes.clock import RateKeeper
from rfedge.runtimes.control import RolloutResult, drive
from rfedge.runtimes.modes import ClosedLoop, Controller, OpenLoop, make_controller
from rfedge.runtimes.policy import STAGES, EdgePolicy, Policy, PolicyStep

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
    "RolloutResult",
    "RuntimeSettings",
    "drive",
    "make_controller",
]
