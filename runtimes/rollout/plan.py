"""What `rfedge run` was asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from rfedge.envs.looks import Looks, Renderer
from rfedge.errors import ConfigError
from rfedge.records.plan import check_least
from rfedge.runtimes.backends.base import RuntimeSettings
from rfedge.runtimes.backends.registry import DEFAULT_BACKEND
from rfedge.runtimes.control.lateness import LatePolicy
from rfedge.runtimes.control.limits import MAX_STEPS
from rfedge.runtimes.control.safety import SafetyLimits
from rfedge.runtimes.control.scheduling import check_priority

__all__ = ["RolloutPlan", "ServerAddress"]


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A `rfedge serve` somewhere.

    Attributes:
        url: ws://HOST:PORT or wss://HOST:PORT.
        deadline_ms: longest wait for an action.
        token: what the server asks for, or None.
        certificate: PEM file of the authority that signed the server's certificate; None for the system's.
    """

    url: str
    deadline_ms: float = 1000.0
    token: str | None = field(default=None, repr=False)
    certificate: Path | None = None

    def __post_init__(self) -> None:
        """Refuse a deadline that nobody can meet.

        Raises:
            ConfigError: it is not a positive number.
        """
        if not (math.isfinite(self.deadline_ms) and self.deadline_ms > 0):
            raise ConfigError(
                "deadline", got=self.deadline_ms, expected="a positive number", remedy="Raise --server-deadline-ms."
            )


@dataclass(frozen=True)
class RolloutPlan:
    """What to run; the fields are the flags of `rfedge run`.

    Attributes:
        bundle, server: where the policy is, one of the two; a run with a server always holds the rate.
        mode, execute_steps: see `rfedge.runtimes.control.controllers.choose_loop`.
        ensemble: decay of a temporal ensemble, or None.
        looks, renderer: see `make_environment`.
        task, instruction: at least one of them; see `rfedge.runtimes.rollout.episode.choose_goal`.
        seed: of the first episode's start, see `rfedge.envs.experts.prepare_start`; the next have seed + 1, seed + 2, ...
        realtime: hold the control rate; overlapped mode and a `rate_hz` mean it anyway.
        rate_hz: control steps per second; None is the policy's own times `speed`, and another one is refused.
        speed: share of the policy's own rate, for slow or fast motion on the wall clock.
        realtime_priority: of the control loop's thread, see `rfedge.runtimes.control.scheduling`; None is ordinary.
        late: what happens on a missed step; there are none unless a rate is held.
        stop_after_frozen: the run ends when a camera has repeated its picture in so many frames in a row; None goes on.
        limits: what the actions are held to.
        backbone_deadline_ms: the robot is stopped when an inference takes longer; None is the step's deadline.
        step_deadline_ms: the same of a whole control step; None is two seconds beyond what an inference may take, where a
            rate is held or the backbone has a deadline, and else no limit.
        video: where to write what the cameras saw, or None.
        record: where to write every step, or None; `record_frames` writes the frames beside it.
        rerun: where to write the same for the Rerun viewer, or None.
        resources: sample memory, power and temperature beside the run, loading included.
    """

    bundle: Path | None = None
    mode: str | None = None
    execute_steps: int | None = None
    ensemble: float | None = None
    env: str = "playtable"
    scene: str = "D"
    looks: Looks | None = None
    renderer: Renderer | None = None
    task: str | None = None
    instruction: str | None = None
    episodes: int = 1
    max_steps: int = MAX_STEPS
    seed: int = 0
    realtime: bool = False
    rate_hz: float | None = None
    speed: float = 1.0
    realtime_priority: int | None = None
    late: LatePolicy = field(default_factory=LatePolicy)
    stop_after_frozen: int | None = None
    limits: SafetyLimits = field(default_factory=SafetyLimits)
    backbone_deadline_ms: float | None = None
    step_deadline_ms: float | None = None
    video: Path | None = None
    record: Path | None = None
    record_frames: bool = False
    rerun: Path | None = None
    resources: bool = False
    settings: RuntimeSettings = field(default_factory=RuntimeSettings)
    backend: str = DEFAULT_BACKEND
    server: ServerAddress | None = None

    def __post_init__(self) -> None:
        """Refuse a plan that runs nothing or asks for what it cannot have.

        Raises:
            ConfigError: no episode or no step, a late policy without a rate, frames without a record, neither bundle nor
                server or both, or the record of a policy that is not here.
        """
        _check_source(self.bundle, self.server, self.record)
        check_least(1, {"episodes": self.episodes, "max_steps": self.max_steps})
        if not self.holds_rate and self.late != LatePolicy():
            raise ConfigError(
                "late", got="no control rate", expected="deadlines to miss", remedy="Pass --realtime or --rate-hz."
            )
        check_priority(self.realtime_priority)
        if not self.holds_rate and self.realtime_priority is not None:
            raise ConfigError(
                "realtime_priority",
                got="no control rate",
                expected="deadlines to keep",
                remedy="Pass --realtime or --rate-hz.",
            )
        if self.record_frames and self.record is None:
            raise ConfigError(
                "--record-frames", got="no record", expected="--record FILE", remedy="Pass it, or leave this out."
            )

    @property
    def step_deadline_s(self) -> float | None:
        """As `rfedge.runtimes.control.loop.ControlLoop` takes it; a server's deadline counts twice: reset and frame."""
        if self.step_deadline_ms is None and self.server is not None:
            return 2.0 * self.server.deadline_ms / 1000 + 2.0
        return None if self.step_deadline_ms is None else self.step_deadline_ms / 1000

    @property
    def holds_rate(self) -> bool:
        """Whether the run waits for deadlines."""
        asked = self.realtime or self.rate_hz is not None or self.speed != 1.0
        return asked or self.mode == "overlapped" or self.server is not None


def _check_source(bundle: Path | None, server: ServerAddress | None, record: Path | None) -> None:
    """Check that a plan names one policy.

    Raises:
        ConfigError: neither bundle nor server or both, or a record of a policy that is not here.
    """
    if (bundle is None) == (server is None):
        raise ConfigError(
            "policy",
            got="neither bundle nor server" if bundle is None else "a bundle and a server",
            expected="one of them",
            remedy="Name a bundle's folder, or pass --server ws://HOST:PORT.",
        )
    if server is not None and record is not None:
        raise ConfigError(
            "--record",
            got="a policy on a server",
            expected="a bundle, whose hash a record holds",
            remedy="Leave out --record, or run the bundle here.",
        )
