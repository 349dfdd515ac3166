"""What a run writes while it goes on: film, record, and the viewer's file; each only if it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rfedge.bundle.artifact import MANIFEST_NAME, hash_file
from rfedge.envs import Environment
from rfedge.records.machine import library_versions
from rfedge.runtimes.control.loop import LoopSummary
from rfedge.runtimes.control.modes import ControlStep
from rfedge.runtimes.rollout.run_record import RunHeader

if TYPE_CHECKING:
    from rfedge.runtimes.rollout.recorder import RunRecorder
    from rfedge.runtimes.rollout.rerun_log import RerunLog
    from rfedge.runtimes.rollout.video import VideoRecorder


@dataclass(slots=True)
class RunFiles:
    """The files of one run; without any it does nothing.

    Attributes:
        film, recorder, rerun: None where nobody wants them; whoever made them closes them.
    """

    film: VideoRecorder | None = None
    recorder: RunRecorder | None = None
    rerun: RerunLog | None = None

    @classmethod
    @contextmanager
    def open(
        cls,
        *,
        film: Path | None,
        film_hz: float,
        record: Path | None,
        header: RunHeader | None,
        with_frames: bool,
        rerun: Path | None,
    ) -> Iterator[RunFiles]:
        """Open what has a name; on the way out, an error's too, it is closed. The film is written by `write_film`.

        Raises:
            ConfigError: a name is not possible or taken.
            BackendUnavailableError: what writes the film or the viewer's file is not installed.
        """
        files = cls()  # each library is imported for the file that needs it
        with ExitStack() as stack:
            if film is not None:
                from rfedge.runtimes.rollout.video import VideoRecorder

                files.film = VideoRecorder(film, film_hz)
            if record is not None and header is not None:
                from rfedge.runtimes.rollout.recorder import RunRecorder

                files.recorder = stack.enter_context(RunRecorder(record, header, with_frames=with_frames))
            if rerun is not None:
                from rfedge.runtimes.rollout.rerun_log import RerunLog

                files.rerun = stack.enter_context(RerunLog(rerun))
            yield files

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
        """Write one control step."""
        if self.film is not None and step.observation is not None:
            self.film.add(step.observation)
        if self.recorder is not None:
            self.recorder.add(step)
        if self.rerun is not None:
            self.rerun.add(step)

    def end_episode(self, summary: LoopSummary) -> None:
        """Write how the episode ended."""
        if self.recorder is not None:
            self.recorder.end_episode(summary)

    def write_film(self) -> None:
        """Write the film of all episodes."""
        if self.film is not None:
            self.film.write()


def run_header(
    bundle: Path, *, plan: dict[str, Any], environment: Environment, name: str, rate_hz: float | None
) -> RunHeader:
    """Return the first line of a record.

    Args:
        plan: all that was asked for, as JSON values, its loop's mode among them.
        environment: what is driven, opened under `name`.
        rate_hz: the rate that is held, or None.
    """
    return RunHeader(
        recorded_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        bundle=str(bundle.resolve()),
        manifest_sha256=hash_file(bundle / MANIFEST_NAME),
        mode=plan["mode"],
        plan=plan,
        environment={
            "name": name,
            "scene": environment.scene,
            "renderer": environment.renderer,
            "looks": environment.looks,
            "control_hz": environment.control_hz,
            "rate_hz": rate_hz,
        },
        versions=library_versions(),
    )
