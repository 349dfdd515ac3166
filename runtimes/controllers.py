"""Builds the loop with a given name around a policy; the loops themselves are in `modes.py` and `overlapped.py`."""

from __future__ import annotations

from typing import Final

from rfedge.errors import ConfigError, did_you_mean, explain
from rfedge.runtimes.clock import Clock
from rfedge.runtimes.ensembling import TemporalEnsemble
from rfedge.runtimes.modes import ClosedLoop, Controller, JumpStep, OpenLoop
from rfedge.runtimes.overlapped import Arrivals, Overlapped
from rfedge.runtimes.policy_step import Policy

__all__ = ["MODES", "SYNCHRONOUS_MODES", "make_controller", "played_steps"]

# In these the actions depend on the frames alone; in `overlapped` also on how fast the machine is.
SYNCHRONOUS_MODES: Final = ("closed-loop", "open-loop", "jump-step")
MODES: Final = (*SYNCHRONOUS_MODES, "overlapped")


def make_controller(
    policy: Policy,
    mode: str,
    execute_steps: int | None = None,
    *,
    ensemble: float | None = None,
    modes: tuple[str, ...] = MODES,
    clock: Clock | None = None,
    arrivals: Arrivals | None = None,
) -> Controller:
    """Wrap `policy` in the loop called `mode`.

    Args:
        policy: what predicts the actions.
        mode: one of `modes`.
        execute_steps: actions played per inference, see `played_steps`; in overlapped mode the least number of control
            steps between two frames.
        ensemble: decay of the weights of a temporal ensemble; None for none.
        modes: what the caller can use: `SYNCHRONOUS_MODES` where a run must not depend on time.
        clock: where an overlapped loop's time comes from.
        arrivals: of a recorded overlapped run, see `rfedge.runtimes.overlapped.Overlapped`.

    Raises:
        ConfigError: the mode is unknown, or `execute_steps` or the ensemble does not fit the mode or the policy.
    """
    if mode not in modes:
        raise ConfigError(
            explain("mode", got=repr(mode), expected=did_you_mean(mode, modes), remedy="Choose one of these names.")
        )
    if mode == "overlapped":
        if ensemble is not None:
            raise ConfigError(
                explain(
                    "ensemble",
                    got="overlapped mode",
                    expected="a mode whose frames are a fixed number of control steps apart",
                    remedy="Leave out --ensemble or choose another --mode.",
                )
            )
        return Overlapped(policy, execute_steps, clock=clock, arrivals=arrivals)
    steps = played_steps(policy, mode, execute_steps)
    asked = policy if ensemble is None else TemporalEnsemble(policy, steps, decay=ensemble)
    if mode == "open-loop":
        return OpenLoop(asked, steps)
    return JumpStep(asked) if mode == "jump-step" else ClosedLoop(asked)


def played_steps(policy: Policy, mode: str, execute_steps: int | None) -> int:
    """Return the control steps per inference.

    Unless `execute_steps` says otherwise: 1 in closed loop, the whole chunk in open loop, the policy's stride in
    jump-step and overlapped mode.

    Raises:
        ConfigError: the mode allows one number only and it is another.
    """
    fixed = {"closed-loop": 1, "jump-step": policy.frame_stride}
    if mode not in fixed:
        default = policy.frame_stride if mode == "overlapped" else policy.chunk_size
        return default if execute_steps is None else execute_steps
    if execute_steps not in (None, fixed[mode]):
        raise ConfigError(
            explain(
                "execute_steps",
                got=execute_steps,
                expected=f"{fixed[mode]} in {mode} mode",
                remedy="Pass --mode open-loop.",
            )
        )
    return fixed[mode]
