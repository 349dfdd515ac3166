"""Reads what `rfedge.runtimes.rollout.recorder` wrote, and gives a replay the times of the recorded run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter, ValidationError

from rfedge.errors import ArtifactError
from rfedge.io.disk import read_file
from rfedge.records.record import Record, first_fault
from rfedge.runtimes.control.modes import Missing

_MAX_RECORD_BYTES: Final = 1 << 30  # a million steps and more
RUN_SCHEMA_VERSION: Final = 2  # 1 prepared other starts from the same seeds
Seven = Annotated[tuple[float | None, ...], Field(min_length=7, max_length=7)]


class RunHeader(Record):
    """What ran.

    Attributes:
        manifest_sha256: of its manifest, which holds the hash of every other file.
        plan: everything that was asked for, as JSON values; whoever ran it can read it again.
        environment: name, scene, renderer and rate of what was driven.
    """

    kind: Literal["header"] = "header"
    format: Literal["rfedge-run"] = "rfedge-run"
    schema_version: Literal[2] = RUN_SCHEMA_VERSION
    recorded_at: str
    bundle: str
    manifest_sha256: str
    mode: str
    plan: dict[str, Any]
    environment: dict[str, str | float | bool | None]
    versions: dict[str, str]


class EpisodeLine(Record):
    """One episode begins; `instruction` is the first one."""

    kind: Literal["episode"] = "episode"
    episode: int
    seed: int | None
    instruction: str


class StepLine(Record):
    """One control step.

    Attributes:
        at_s: since the file was opened, when the step was written.
        lag_ms, overdue_ms, elapsed_ms, age_steps, age_ms: see `rfedge.runtimes.control.modes.ControlStep`.
        instruction: when it is new in this step.
        raw: what the controller answered; null for NaN or Inf.
        timings_ms: of the inference whose answer arrived in this step; null without one.
        state: hash of what the policy remembered after it.
        frame: checksum of the frame taken in this step; null without one.
    """

    kind: Literal["step"]
    episode: int
    step: int
    at_s: float
    lag_ms: float
    overdue_ms: float
    elapsed_ms: float
    instruction: str | None
    raw: Seven
    sent: Seven
    interventions: tuple[str, ...]
    missing: Missing | None
    missed: bool
    age_steps: int
    age_ms: float
    timings_ms: dict[str, float] | None
    state: str | None
    frame: int | None


class EndLine(Record):
    """An episode ended; `error` is the text of what ended it, if it was one."""

    kind: Literal["end"] = "end"
    episode: int
    ended: str
    success: bool | None
    error: str | None = None


_LINE: Final[TypeAdapter[RunHeader | EpisodeLine | StepLine | EndLine]] = TypeAdapter(
    Annotated[RunHeader | EpisodeLine | StepLine | EndLine, Field(discriminator="kind")]
)


@dataclass(slots=True)
class RecordedEpisode:
    """One episode; `end` is None when the run was killed in it."""

    begin: EpisodeLine
    steps: list[StepLine] = field(default_factory=list)
    end: EndLine | None = None

    def sent(self) -> npt.NDArray[np.float32]:
        """Return what the robot got, float32 (step, 7)."""
        return np.array([step.sent for step in self.steps], dtype=np.float32).reshape(-1, 7)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A whole file; `is_cut` tells that its last line was not finished."""

    header: RunHeader
    episodes: tuple[RecordedEpisode, ...]
    is_cut: bool

    def arrivals(self) -> Mapping[int, int]:
        """Return in which control step, counted over the whole run, which frame's chunk arrived."""
        steps = [step for episode in self.episodes for step in episode.steps]
        return {index: index - step.age_steps for index, step in enumerate(steps) if step.timings_ms is not None}


def read_run(path: Path) -> RunRecord:
    """Read a record; a last line that was cut off is left out. Raises ArtifactError if the file is missing, no record, of
    another version or damaged; the text names the line.
    """
    try:
        content = read_file(path, _MAX_RECORD_BYTES)
    except OSError as error:
        raise ArtifactError(
            f"record {path}", got=error.strerror, expected="a file", remedy="Write one with `rfedge run --record`."
        ) from None
    *texts, rest = content.split(b"\n")
    lines = [_parse(path, number, text) for number, text in enumerate(texts, start=1)]
    if not lines or not isinstance(lines[0], RunHeader):
        raise _damaged(path, 1, "no header")
    episodes: list[RecordedEpisode] = []
    for number, line in enumerate(lines[1:], start=2):
        if isinstance(line, EpisodeLine) and line.episode == len(episodes):
            episodes.append(RecordedEpisode(line))
        elif isinstance(line, StepLine) and episodes and (line.episode, line.step) == _next(episodes):
            episodes[-1].steps.append(line)
        elif isinstance(line, EndLine) and episodes and episodes[-1].end is None:
            episodes[-1].end = line
        else:
            raise _damaged(path, number, f"a line of kind {line.kind!r} out of order")
    return RunRecord(header=lines[0], episodes=tuple(episodes), is_cut=bool(rest))


class RecordedPace:
    """The times of a recorded episode: a replay is late exactly where the run was, and waits for nothing."""

    def __init__(self, steps: Sequence[StepLine]) -> None:
        self._steps = steps
        self._index = -1
        self.num_late = sum(step.lag_ms > 0.0 for step in steps)
        self.num_skipped = 0

    def wait(self) -> float:
        """Go on to the next step."""
        self._index += 1
        return self._steps[self._index].lag_ms / 1000.0

    def overdue_s(self) -> float:
        """Return what the recorded step was overdue."""
        return self._steps[self._index].overdue_ms / 1000.0


def _next(episodes: list[RecordedEpisode]) -> tuple[int, int]:
    last = episodes[-1]
    return (last.begin.episode, len(last.steps)) if last.end is None else (-1, -1)


def _parse(path: Path, number: int, text: bytes) -> RunHeader | EpisodeLine | StepLine | EndLine:
    try:
        return _LINE.validate_json(text)
    except ValidationError as error:
        raise _damaged(path, number, first_fault(error)) from None


def _damaged(path: Path, number: int, got: str) -> ArtifactError:
    return ArtifactError(
        f"line {number} of {path}",
        got=got,
        expected="a line of `rfedge run --record` of this version",
        remedy="The file is damaged or no record.",
    )
