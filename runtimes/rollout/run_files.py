"""Files that a run writes while it goes on: film, record, and the viewer's file; each only if it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from rfedge.bundle.artifact import MANIFEST_NAME, hash_file
from rfedge.envs import Environment
from rfedge.records.machine import library_versions
from rfedge.runtimes.control.loop import LoopSummary
from rfedge.runtimes.control.modes import ControlStep
from rfedge.runtimes.rollout.plan import RolloutPlan
from rfedge.runtimes.rollout.run_record import RunHeader, RunRecorder

if TYPE_CHECKING:
    from rfedge.runtimes.rollout.rerun_log import RerunLog
    from rfedge.runtimes.rollout.video import VideoRecorder


class RunFiles:
    """Film, record and the viewer's file of one run, those that the plan names; `stack` closes them."""

    def __init__(self, stack: ExitStack, plan: RolloutPlan, environment: Environment, rate_hz: float | None) -> None:
        self._film: VideoRecorder | None = None
        self._rerun: RerunLog | None = None
        self.recorder: RunRecorder | None = None
        if plan.video is not None:
            from rfedge.runtimes.rollout.video import VideoRecorder

            self._film = VideoRecorder(plan.video, rate_hz or environment.control_hz)
        if plan.record is not None and plan.bundle is not None:
            header = _header(plan.bundle, plan, environment, rate_hz)
            self.recorder = stack.enter_context(RunRecorder(plan.record, header, with_frames=plan.record_frames))
        if plan.rerun is not None:
            from rfedge.runtimes.rollout.rerun_log import RerunLog

            self._rerun = stack.enter_context(RerunLog(plan.rerun))

    @contextmanager
    def episode(self, episode: int, *, seed: int, instruction: str) -> Iterator[None]:
        """Write that an episode begins and, if it ends in an error, which."""
        if self.recorder is not None:
            self.recorder.begin_episode(episode, seed=seed, instruction=instruction)
        try:
            yield
        except BaseException as error:
            if self.recorder is not None:
                self.recorder.fail(error)
            raise

    def add(self, step: ControlStep) -> None:
        if self._film is not None and step.observation is not None:
            self._film.add(step.observation)
        for file in (self.recorder, self._rerun):
            if file is not None:
                file.add(step)

    def end_episode(self, summary: LoopSummary) -> None:
        if self.recorder is not None:
            self.recorder.end_episode(summary)

    def write_film(self) -> None:
        if self._film is not None:
            self._film.write()


def _header(bundle: Path, plan: RolloutPlan, environment: Environment, rate_hz: float | None) -> RunHeader:
    return RunHeader(
        recorded_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        bundle=str(bundle.resolve()),
        manifest_sha256=hash_file(bundle / MANIFEST_NAME),
        mode=str(plan.mode),
        plan=TypeAdapter(RolloutPlan).dump_python(plan, mode="json"),
        environment={
            "name": plan.env,
            "scene": environment.scene,
            "renderer": environment.renderer,
            "looks": environment.looks,
            "control_hz": environment.control_hz,
            "rate_hz": rate_hz,
        },
        versions=library_versions(),
    )
