"""Builds the loop with a given name around a policy; the loops themselves are in `modes.py` and `overlapped.py`."""

from __future__ import annotations

from typing import Final

from rfedge.errors import ConfigError, one_of
from rfedge.runtimes.control.ensembling import TemporalEnsemble
from rfedge.runtimes.control.modes import ClosedLoop, Controller, JumpStep, OpenLoop, check_jumps
from rfedge.runtimes.control.overlapped import Arrivals, Overlapped
from rfedge.runtimes.policy.step import Policy, Trained

__all__ = ["MODES", "SYNCHRONOUS_MODES", "Trained", "choose_loop", "make_controller"]

# In these the actions depend on the frames alone; in `overlapped` also on how fast the machine is.
SYNCHRONOUS_MODES: Final = ("closed-loop", "open-loop", "jump-step")
MODES: Final = (*SYNCHRONOUS_MODES, "overlapped")


def make_controller(
    policy: Policy,
    mode: str | None = None,
    execute_steps: int | None = None,
    *,
    ensemble: float | None = None,
    modes: tuple[str, ...] = MODES,
    arrivals: Arrivals | None = None,
) -> Controller:
    """Wrap `policy` in the loop called `mode`, as `choose_loop` chooses it.

    Args:
        ensemble: decay of the weights of a temporal ensemble; None for none.
        modes: what the caller can use: `SYNCHRONOUS_MODES` where a run must not depend on time.
        arrivals: of a recorded overlapped run, see `rfedge.runtimes.control.overlapped.Overlapped`.

    Raises:
        ConfigError: the mode is unknown, or `execute_steps` or the ensemble does not fit the mode or the policy.
    """
    mode, steps = choose_loop(policy, mode, execute_steps, modes=modes)
    if mode == "overlapped":
        if ensemble is not None:
            raise ConfigError(
                "ensemble",
                got="overlapped mode",
                expected="a mode whose frames are a fixed number of control steps apart",
                remedy="Leave out --ensemble or choose another --mode.",
            )
        return Overlapped(policy, steps, arrivals=arrivals)
    asked = policy if ensemble is None else TemporalEnsemble(policy, steps, decay=ensemble)
    if mode == "open-loop":
        return OpenLoop(asked, steps)
    return JumpStep(asked) if mode == "jump-step" else ClosedLoop(asked)


def choose_loop(
    policy: Trained, mode: str | None = None, execute_steps: int | None = None, *, modes: tuple[str, ...] = MODES
) -> tuple[str, int]:
    """Return the mode and the control steps per inference; what is not asked for is what the policy was trained for.

    Where only the steps are given, the mode is closed-loop for 1, jump-step for the policy's stride, else open-loop. Where
    only the mode is given, the steps are 1 in closed loop, the whole chunk in open loop, else the policy's stride. In
    overlapped mode they are the least number of control steps between two frames.

    Raises:
        ConfigError: the mode is unknown, or none of the policy's, or allows one number only and it is another.
    """
    stride = policy.frame_stride
    if mode is None:
        steps = stride if execute_steps is None else execute_steps
        return "closed-loop" if steps == 1 else "jump-step" if steps == stride else "open-loop", steps
    one_of(modes, mode, "mode")
    if mode == "jump-step":
        check_jumps(stride)
    default = {"closed-loop": 1, "open-loop": policy.chunk_size}.get(mode, stride)
    if mode in ("closed-loop", "jump-step") and execute_steps not in (None, default):
        remedy = "Leave out --mode, or pass --mode open-loop."
        raise ConfigError("execute_steps", got=execute_steps, expected=f"{default} in {mode} mode", remedy=remedy)
    return mode, default if execute_steps is None else execute_steps
