"""Runs a recorded run again, from its header, and compares every action bit for bit.

What is compared: the frame's checksum, the hash of what the policy remembers, the action it wanted and the action that
was sent. What is ignored: every time. A step that was late, starved or told something new is so again, because the record
says it was; so an overlapped run can be replayed too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from rfedge.bundle.artifact import MANIFEST_NAME, hash_file, load_bundle
from rfedge.errors import ArtifactError, ContractError
from rfedge.records.machine import library_versions
from rfedge.records.record import Record
from rfedge.runtimes.control.loop import StepReport
from rfedge.runtimes.control.stopping import StopRequest
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from rfedge.runtimes.rollout.plan import RolloutPlan
from rfedge.runtimes.rollout.recorder import frame_checksum, state_hash
from rfedge.runtimes.rollout.rollouts import run_rollouts
from rfedge.runtimes.rollout.run_record import RunRecord, StepLine, read_run

__all__ = ["Difference", "ReplayReport", "replay_run"]

_DIFFERS: Final = "the replay differs"


class Difference(Record):
    """The first thing that came out otherwise.

    Attributes:
        what: "frame", "state", "raw action", "sent action" or "number of steps".
        recorded, replayed: both, as text.
    """

    episode: int
    step: int
    what: str
    recorded: str
    replayed: str


class ReplayReport(Record):
    """What a replay found.

    Attributes:
        num_steps: control steps that came out alike.
        is_cut: the record's last line was not finished and was left out.
        difference: the first one, or None.
        cause: the first difference in what led to it, a frame or the policy's memory; None where there was none.
        changed_versions: library -> recorded and present version, where they are not the same.
    """

    format: Literal["rfedge-replay"] = "rfedge-replay"
    schema_version: Literal[1] = 1
    record: str
    bundle: str
    num_episodes: int
    num_steps: int
    is_cut: bool
    difference: Difference | None
    cause: Difference | None
    changed_versions: dict[str, str]


def replay_run(
    path: Path,
    *,
    bundle: Path | None = None,
    on_load: Callable[[EdgePolicy], None] | None = None,
    on_step: Callable[[int, StepReport], None] | None = None,
    stop: StopRequest | None = None,
) -> ReplayReport:
    """Run the record at `path` again, up to the first action that differs.

    Args:
        path: a file of `rfedge run --record`.
        bundle: where the bundle is now; None is where it was.
        on_load, on_step, stop: as `rfedge.runtimes.rollout.rollouts.run_rollouts`.

    Raises:
        ArtifactError: the record is damaged, or the bundle is missing or another one.
        ContractError: the policy refuses what it took when the run was recorded.
    """
    record = read_run(path)
    plan = _plan(path, record, bundle)
    comparison = _Comparison(record, stop or StopRequest(), on_step)
    try:
        run_rollouts(plan, on_load=on_load, on_step=comparison.compare, stop=comparison.stop, record=record)
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
    )


class _Comparison:
    """Looks at each step of a replay; the first action that differs ends it."""

    def __init__(self, record: RunRecord, stop: StopRequest, on_step: Callable[[int, StepReport], None] | None) -> None:
        self.stop = stop
        self.num_alike = 0
        self.difference: Difference | None = None
        self.cause: Difference | None = None
        self._record = record
        self._on_step = on_step

    @property
    def is_complete(self) -> bool:
        return self.num_alike == sum(len(episode.steps) for episode in self._record.episodes)

    def compare(self, episode: int, step: StepReport) -> None:
        line = self._record.episodes[episode].steps[step.index]
        differences = [
            Difference(episode=episode, step=step.index, what=what, recorded=recorded, replayed=replayed)
            for what, recorded, replayed in _compared(line, step)
            if recorded != replayed
        ]
        for difference in differences:
            if difference.what.endswith("action"):
                self.difference = self.difference or difference
            else:
                self.cause = self.cause or difference
        if self.difference is None:
            self.num_alike += 1
        else:
            self.stop.ask(_DIFFERS)
        if self._on_step is not None:
            self._on_step(episode, step)

    def missing_steps(self) -> Difference | None:
        """Return the difference of a replay that ended early, such as by success in another step."""
        if self.is_complete or self.stop.reason is not None:
            return None
        done = self.num_alike
        for episode in self._record.episodes:
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


def _compared(line: StepLine, step: StepReport) -> list[tuple[str, str, str]]:
    inference, frame = step.control.inference, step.observation
    pairs = []
    if line.frame is not None and frame is not None:
        pairs.append(("frame", f"{line.frame:08x}", f"{frame_checksum(frame):08x}"))
    if line.state is not None and inference is not None and inference.state is not None:
        pairs.append(("state", line.state, state_hash(inference.state)))
    pairs.append(("raw action", _text(line.raw), _text(step.control.action.tolist())))
    pairs.append(("sent action", _text(line.sent), _text(step.sent.tolist())))
    return pairs


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
        first = error.errors(include_url=False)[0]
        raise ArtifactError(
            f"plan in {path}",
            got=f"{first['msg']} at {'.'.join(str(part) for part in first['loc'])}",
            expected="a plan of this version",
            remedy="The file is damaged or of another version.",
        ) from None
