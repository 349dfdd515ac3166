"""Runs a recorded run again, from its header, and compares every action, bit for bit or within a tolerance.

The simulator of the run is run again too; or the recorded frames are shown in its place, which a robot's own computer can do
with the core alone. Every time is ignored: a step that was late, starved or newly instructed is so again, because the record
says it was; so an overlapped run can be replayed too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from rfedge.bundle.artifact import MANIFEST_NAME, hash_file, load_bundle
from rfedge.errors import ArtifactError, ConfigError, ContractError
from rfedge.records.machine import library_versions
from rfedge.records.record import Record, first_fault
from rfedge.runtimes.control.controllers import make_controller
from rfedge.runtimes.control.loop import STOPPED, ControlLoop
from rfedge.runtimes.control.modes import ControlStep
from rfedge.runtimes.control.robot import Robot, SimulatedRobot
from rfedge.runtimes.control.safety import SafetyGuard
from rfedge.runtimes.control.stopping import StopRequest
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.rollout import Goal, roll_out
from rfedge.runtimes.rollout.plan import RolloutPlan
from rfedge.runtimes.rollout.policy_source import open_policy
from rfedge.runtimes.rollout.recorded_episode import RecordedEpisodeRobot, RecordedFrames
from rfedge.runtimes.rollout.rollout_session import begin_episode, choose_goal
from rfedge.runtimes.rollout.run_record import (
    FRAMES_SUFFIX,
    RecordedPace,
    RunRecord,
    StepLine,
    frame_checksum,
    read_frame,
    read_run,
    state_hash,
)

_DIFFERS: Final = "the replay differs"


class Difference(Record):
    """The first thing that came out otherwise."""

    episode: int
    step: int
    what: str  # "frame", "state", "raw action", "sent action" or "number of steps"
    recorded: str
    replayed: str


class ReplayReport(Record):
    format: Literal["rfedge-replay"] = "rfedge-replay"
    schema_version: Literal[1] = 1
    record: str
    bundle: str
    num_episodes: int
    num_steps: int  # control steps that came out alike
    is_cut: bool  # the record's last line was not finished and was left out
    difference: Difference | None  # the first one, or None
    # the first difference in what led to it, a frame or the policy's memory; None where there was none
    cause: Difference | None
    changed_versions: dict[str, str]  # library -> recorded and present version, where they are not the same
    tolerance: float = 0.0  # how far an action's number may be off; 0 asks for the same bits
    largest_difference: float = 0.0  # of the numbers of all actions that were compared


def replay_run(
    path: Path,
    *,
    bundle: Path | None = None,
    from_frames: bool = False,
    tolerance: float = 0.0,
    on_load: Callable[[EdgePolicy], None] = lambda _: None,
    on_step: Callable[[int, ControlStep], None] = lambda *_: None,
    stop: StopRequest | None = None,
) -> ReplayReport:
    """Run the record at `path` again, up to the first action that differs.

    `bundle` is where the bundle is now, None where it was. `from_frames` shows the frames of `--record-frames` instead of
    running the simulator. `tolerance` is how far a number of an action may be off, in the action's own units (-1 to 1); a
    gripper that opens where it closed is off by 2.

    Raises:
        ArtifactError: the record is damaged, or the bundle is missing or another one.
        ConfigError: a tolerance without frames: a simulator would go its own way after the first difference.
        ContractError: the policy refuses what it took when the run was recorded.
    """
    if tolerance and not from_frames:
        raise ConfigError(
            "tolerance", got=f"{tolerance:g}", expected="0 with a simulator, which goes its own way after a difference",
            remedy="Record with --record-frames and replay with --from-frames.",
        )  # fmt: skip
    record = read_run(path)
    plan = _plan(path, record, bundle)
    comparison = _Comparison(record, stop or StopRequest(), on_step, tolerance)
    try:
        _run_again(path, plan, record, comparison, on_load, from_frames=from_frames)
    except ContractError:
        # A run that ended in this error ends in it again, after its last step.
        if not comparison.is_complete:
            raise
    present = library_versions()
    return ReplayReport(
        record=str(path),
        bundle=str(plan.bundle),
        num_episodes=len(record.episodes),
        num_steps=comparison.num_alike,
        is_cut=record.is_cut,
        difference=comparison.difference or comparison.missing_steps(),
        cause=comparison.cause,
        changed_versions={
            name: f"{version} -> {present.get(name, 'not installed')}"
            for name, version in record.header.versions.items()
            if present.get(name) != version
        },
        tolerance=tolerance,
        largest_difference=comparison.largest_difference,
    )


def _run_again(
    path: Path,
    plan: RolloutPlan,
    record: RunRecord,
    comparison: _Comparison,
    on_load: Callable[[EdgePolicy], None],
    *,
    from_frames: bool,
) -> None:
    """Run every recorded episode with its times and instructions, in the simulator or on the recorded frames."""
    goal, frames = choose_goal(plan.task, plan.instruction), path.with_name(path.name + FRAMES_SUFFIX)
    with ExitStack() as stack:
        opened = open_policy(stack, plan, on_load)
        controller = make_controller(
            opened.policy, plan.mode, plan.execute_steps, ensemble=plan.ensemble, arrivals=record.arrivals()
        )
        stack.callback(controller.close)
        environment = None if from_frames else stack.enter_context(plan.open_environment())
        guard = SafetyGuard(plan.limits)
        for number, episode in enumerate(record.episodes):
            robot: Robot
            if environment is None:
                robot = RecordedEpisodeRobot(RecordedFrames(partial(read_frame, frames, number), len(episode.steps)))
                success = None
            else:
                robot, success = SimulatedRobot(environment), begin_episode(environment, goal, plan.seed + number)
            loop = ControlLoop(
                controller,
                robot,
                pace=RecordedPace(episode.steps),
                late=plan.late,
                guard=guard,
                stop=comparison.stop,
                speed=plan.speed,
                stop_after_frozen=plan.stop_after_frozen,
                step_deadline_s=math.inf,
                cancel=opened.cancel,
            )
            rollout = roll_out(
                loop,
                goal,
                max_steps=len(episode.steps),
                success=success,
                instruction=recorded_instructions(episode.steps, goal),
                on_step=partial(comparison.compare, number),
                observe_every_step=plan.observes_every_step,
            )
            if comparison.stop.reason is not None or rollout.record.ended in STOPPED:
                break


def recorded_instructions(steps: Sequence[StepLine], goal: Goal) -> Callable[[], str]:
    """Return what answers, asked once per step, with the instruction that was followed in that step."""
    present, following = goal.instruction, iter(steps)

    def ask() -> str:
        nonlocal present
        step = next(following, None)
        if step is not None and step.instruction is not None:
            present = step.instruction
        return present

    return ask


@dataclass(slots=True)
class _Comparison:
    """Looks at each step of a replay; the first action that differs ends it."""

    record: RunRecord
    stop: StopRequest
    on_step: Callable[[int, ControlStep], None]
    tolerance: float
    largest_difference: float = 0.0
    num_alike: int = 0
    difference: Difference | None = None
    cause: Difference | None = None

    @property
    def is_complete(self) -> bool:
        return self.num_alike == sum(len(episode.steps) for episode in self.record.episodes)

    def compare(self, episode: int, step: ControlStep) -> None:
        line = self.record.episodes[episode].steps[step.index]
        differences = [
            Difference(episode=episode, step=step.index, what=what, recorded=recorded, replayed=replayed)
            for what, recorded, replayed in _compared(line, step)
            if recorded != replayed
        ]
        off = max(_off(line.raw, step.action), _off(line.sent, step.sent))
        self.largest_difference = max(self.largest_difference, off)
        for difference in differences:
            if difference.what.endswith("action"):
                if off <= self.tolerance:
                    continue
                self.difference = self.difference or difference
            else:
                self.cause = self.cause or difference
        if self.difference is None:
            self.num_alike += 1
        else:
            self.stop.ask(_DIFFERS)
        self.on_step(episode, step)

    def missing_steps(self) -> Difference | None:
        """Return the difference of a replay that ended early, such as by success in another step."""
        if self.is_complete or self.stop.reason is not None:
            return None
        done = self.num_alike
        for episode in self.record.episodes:
            if done < len(episode.steps):
                return Difference(
                    episode=episode.begin.episode,
                    step=done,
                    what="number of steps",
                    recorded=str(len(episode.steps)),
                    replayed=str(done),
                )
            done -= len(episode.steps)
        return None


def _compared(line: StepLine, step: ControlStep) -> list[tuple[str, str, str]]:
    inference, frame = step.inference, step.observation
    pairs = []
    if line.frame is not None and frame is not None:
        pairs.append(("frame", f"{line.frame:08x}", f"{frame_checksum(frame):08x}"))
    if line.state is not None and inference is not None and inference.state is not None:
        pairs.append(("state", line.state, state_hash(inference.state)))
    pairs.append(("raw action", _text(line.raw), _text(step.action.tolist())))
    pairs.append(("sent action", _text(line.sent), _text(step.sent.tolist())))
    return pairs


def _off(recorded: tuple[float | None, ...], replayed: npt.ArrayLike) -> float:
    """Return by how much the number that differs most does; infinite where one alone is finite."""
    values = np.array([np.nan if value is None else value for value in recorded])
    other = np.asarray(replayed, dtype=np.float64)
    gaps = np.where(np.isfinite(values) == np.isfinite(other), np.abs(np.nan_to_num(values - other)), math.inf)
    return float(gaps.max())


def _text(action: tuple[float | None, ...] | list[float]) -> str:
    # Nine digits name every float32; -0.0 keeps its sign, and NaN and Inf, which were recorded as null, are alike.
    values = np.array([np.nan if value is None else value for value in action], dtype=np.float32)
    return " ".join(f"{value:.9g}" if np.isfinite(value) else "nan" for value in values)


def _plan(path: Path, record: RunRecord, bundle: Path | None) -> RolloutPlan:
    header = record.header
    folder = bundle or Path(header.bundle)
    load_bundle(folder)
    sha256 = hash_file(folder / MANIFEST_NAME)
    if sha256 != header.manifest_sha256:
        raise ArtifactError(
            f"bundle {folder}",
            got=f"a manifest with sha256 {sha256[:12]}...",
            expected=f"{header.manifest_sha256[:12]}..., with which {path} was recorded",
            remedy="Name the bundle of the recorded run.",
        )
    try:
        return TypeAdapter(RolloutPlan).validate_python({**header.plan, "bundle": folder})
    except ValidationError as error:
        remedy = "The file is damaged or of another version."
        got = first_fault(error)
        raise ArtifactError(f"plan in {path}", got=got, expected="a plan of this version", remedy=remedy) from None
