"""Options of `rfedge run`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from rfedge.envs.interface import ENVIRONMENTS, Environment, make_environment
from rfedge.envs.looks import LOOKS_HELP, RENDERER_HELP, Looks, Renderer
from rfedge.errors import ConfigError
from rfedge.policies import find_bundle
from rfedge.records.plan import Option, Uses, check_least
from rfedge.runtimes.backends.base import RuntimeSettings
from rfedge.runtimes.backends.registry import AUTO, BACKEND_HELP, BACKENDS
from rfedge.runtimes.control.controllers import MODES
from rfedge.runtimes.control.limits import MAX_STEPS, LatePolicy
from rfedge.runtimes.control.safety import SafetyLimits
from rfedge.runtimes.control.scheduling import check_priority


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A `rfedge serve` somewhere."""

    url: Annotated[
        str,
        Option(
            "Ask a `rfedge serve` at ws://HOST:PORT or wss://HOST:PORT instead of a bundle; holds the rate, and holds "
            "the robot while the server is away. Token: --server-token-file or $RFEDGE_SERVER_TOKEN.",
            flag="--server",
            optional=True,
        ),
    ]
    deadline_ms: Annotated[float, Option("Longest wait for an action of the server.", flag="--server-deadline-ms")] = 1000.0
    token: str | None = field(default=None, repr=False)  # what the server asks for, or None
    certificate: Annotated[
        Path | None, Option("PEM certificate of who signed the server's; default the system's.", flag="--server-certificate")
    ] = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.deadline_ms) and self.deadline_ms > 0):
            remedy = "Raise --server-deadline-ms."
            raise ConfigError("deadline", got=self.deadline_ms, expected="a positive number", remedy=remedy)


@dataclass(frozen=True)
class RolloutPlan:
    """Policy, task and loop of a run: a bundle or a server, which always holds the rate."""

    bundle: Annotated[
        Path | None,
        Option(
            "Folder written by `rfedge export`, or a shipped policy's name; without one, the one for the mode.",
            argument=True,
            parse=find_bundle,
        ),
    ] = None
    env: Annotated[
        str, Option("playtable, or calvin where calvin_env is installed.", panel="World and task", choices=ENVIRONMENTS)
    ] = "playtable"
    scene: Annotated[str, Option("Table layout, A to D.")] = "D"
    looks: Annotated[Looks | None, Option(LOOKS_HELP)] = None
    renderer: Annotated[Renderer | None, Option(RENDERER_HELP)] = None
    # task, instruction: at least one of them; see `rfedge.runtimes.rollout.rollout_session.choose_goal`
    task: Annotated[str | None, Option("Task to do and to check, for instance open_drawer.")] = None
    instruction: Annotated[
        str | None, Option("Sentence for the policy; success is checked if it describes a known task.")
    ] = None
    episodes: Annotated[int, Option("Episodes, with seeds SEED, SEED + 1, ...")] = 1
    max_steps: Annotated[int, Option("Control steps per episode.")] = MAX_STEPS
    seed: Annotated[int, Option("Number of the first episode's start: those of `bench success --single-tasks`.")] = 0
    mode: Annotated[
        str | None,
        Option(
            "closed-loop, open-loop, jump-step or overlapped; default: as the policy was trained.",
            panel="Policy",
            choices=MODES,
        ),
    ] = None
    execute_steps: Annotated[
        int | None,
        Option(
            "Actions played per inference; default: as the policy was trained, the whole chunk with --mode open-loop. "
            "Overlapped: least number of steps between two frames."
        ),
    ] = None
    ensemble: Annotated[
        float | None,
        Option("Play the weighted mean of overlapping chunks; decay of the weights, 0.01 in ACT, below 0: newer first."),
    ] = None
    backend: Annotated[str, Option(BACKEND_HELP, choices=BACKENDS)] = AUTO
    settings: Annotated[RuntimeSettings, Uses("threads", "providers", "one_stage_at_a_time")] = field(
        default_factory=RuntimeSettings
    )
    server: Annotated[ServerAddress | None, Uses()] = None
    # overlapped mode and a `rate_hz` mean it anyway
    realtime: Annotated[bool, Option("Hold the control rate on the wall clock.", panel="Control rate")] = False
    rate_hz: Annotated[
        float | None, Option("Hold this rate, which must be the policy's own times --speed; the default is.")
    ] = None
    speed: Annotated[
        float, Option("Share of the policy's own rate to hold, 0.2 for a first run in slow motion.", min=1e-3)
    ] = 1.0
    realtime_priority: Annotated[
        int | None, Option("With a rate: schedule the control loop before ordinary programs, 1 to 97; needs the right to.")
    ] = None
    # there are no missed steps unless a rate is held
    late: Annotated[LatePolicy, Uses()] = field(default_factory=LatePolicy)
    backbone_deadline_ms: Annotated[
        float | None, Option("Stop the robot and end with status 1 when an inference takes longer.", panel="Safety")
    ] = None
    # without a rate and a deadline of the backbone, None is no limit
    step_deadline_ms: Annotated[
        float | None,
        Option(
            "The same for a whole control step, camera and robot included; default, where a rate is held or the "
            "backbone has a deadline, two seconds more than an inference may take."
        ),
    ] = None
    stop_after_frozen: Annotated[
        int | None,
        Option(
            "Stop the robot and end with status 1 after this many consecutive frames in which a camera repeats its picture."
        ),
    ] = None
    limits: Annotated[
        SafetyLimits, Uses("max_step_m", "max_step_rad", "workspace", "max_pose_jump_m", "min_gripper_steps")
    ] = field(default_factory=SafetyLimits)
    video: Annotated[Path | None, Option("Write the cameras' frames to this .gif or .mp4.", panel="Output")] = None
    record: Annotated[Path | None, Option("Write every step to this file, one JSON line each.")] = None
    record_frames: Annotated[bool, Option("With --record: write a frame of every step beside it, FILE.frames/.")] = False
    rerun: Annotated[Path | None, Option("Write frames, actions and ages to this .rrd file for the Rerun viewer.")] = None
    resources: Annotated[bool, Option("Sample memory, power and temperature beside the run, the simulator included.")] = (
        False
    )

    def __post_init__(self) -> None:
        if (self.bundle is None) == (self.server is None):
            raise ConfigError(
                "policy",
                got="neither bundle nor server" if self.bundle is None else "a bundle and a server",
                expected="one of them",
                remedy="Name a bundle's folder, or pass --server ws://HOST:PORT.",
            )
        if self.server is not None and self.record is not None:
            expected, remedy = "a bundle, whose hash a record holds", "Leave out --record, or run the bundle here."
            raise ConfigError("--record", got="a policy on a server", expected=expected, remedy=remedy)
        check_least(1, {"episodes": self.episodes, "max_steps": self.max_steps})
        if not self.holds_rate and self.late != LatePolicy():
            remedy = "Pass --realtime or --rate-hz."
            raise ConfigError("late", got="no control rate", expected="deadlines to miss", remedy=remedy)
        check_priority(self.realtime_priority)
        if not self.holds_rate and self.realtime_priority is not None:
            remedy = "Pass --realtime or --rate-hz."
            raise ConfigError("realtime_priority", got="no control rate", expected="deadlines to keep", remedy=remedy)
        if self.record_frames and self.record is None:
            remedy = "Pass it, or leave this out."
            raise ConfigError("--record-frames", got="no record", expected="--record FILE", remedy=remedy)

    def open_environment(self) -> Environment:
        """Make the simulator; errors as those of `make_environment`."""
        return make_environment(self.env, looks=self.looks, renderer=self.renderer, scene=self.scene, seed=self.seed)

    @property
    def observes_every_step(self) -> bool:
        """Whether a frame is taken where the policy needs none; the guard sees it, so a replay must take it too."""
        return self.video is not None or self.rerun is not None or self.record_frames

    @property
    def step_deadline_s(self) -> float | None:
        """As `rfedge.runtimes.control.loop.ControlLoop` takes it; a server's deadline counts twice: reset and frame."""
        if self.step_deadline_ms is None and self.server is not None:
            return 2.0 * self.server.deadline_ms / 1000 + 2.0
        return None if self.step_deadline_ms is None else self.step_deadline_ms / 1000

    @property
    def holds_rate(self) -> bool:
        asked = self.realtime or self.rate_hz is not None or self.speed != 1.0
        return asked or self.mode == "overlapped" or self.server is not None
