"""A run as JSON Lines, one line a control step, so that it can be read, plotted and run again bit for bit.

    {"kind": "header", ...}    what ran: bundle and its hash, plan, environment, versions
    {"kind": "episode", ...}   number, seed, instruction
    {"kind": "step", ...}      see `StepLine`
    {"kind": "end", ...}       why the episode ended, see `rfedge.runtimes.control.loop.Ending`

Every line is handed to the system before the next step begins: a killed process loses at most the line it was writing.
Frames go beside the file on demand, one npz each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter, ValidationError

from rfedge.errors import ArtifactError, ConfigError
from rfedge.io.disk import read_file
from rfedge.messages import Observation, PolicyState
from rfedge.records.record import Record, first_fault
from rfedge.runtimes.control.loop import LoopSummary
from rfedge.runtimes.control.modes import ControlStep, Missing

logger = logging.getLogger(__name__)
FRAMES_SUFFIX: Final = ".frames"
_HASH_BYTES: Final = 8
_TEMPORARY: Final = ".partial.npz"
_MAX_RECORD_BYTES: Final = 1 << 30  # a million steps and more
Seven = Annotated[tuple[float | None, ...], Field(min_length=7, max_length=7)]


class RunHeader(Record):
    kind: Literal["header"] = "header"
    format: Literal["rfedge-run"] = "rfedge-run"
    schema_version: Literal[2] = 2  # 1 prepared other starts from the same seeds
    recorded_at: str
    bundle: str
    manifest_sha256: str  # of its manifest, which holds the hash of every other file
    mode: str
    plan: dict[str, Any]  # everything that was asked for, as JSON values; whoever ran it can read it again
    environment: dict[str, str | float | bool | None]  # name, scene, renderer and rate of what was driven
    versions: dict[str, str]


class EpisodeLine(Record):
    """One episode begins; `instruction` is the first one."""

    kind: Literal["episode"] = "episode"
    episode: int
    seed: int | None
    instruction: str


class StepLine(Record):
    """One control step; times and ages are those of `rfedge.runtimes.control.modes.ControlStep`."""

    kind: Literal["step"]
    episode: int
    step: int
    at_s: float  # since the file was opened, when the step was written
    lag_ms: float
    overdue_ms: float
    elapsed_ms: float
    instruction: str | None  # when it is new in this step
    raw: Seven  # what the controller answered; null for NaN or Inf
    sent: Seven
    interventions: tuple[str, ...]
    missing: Missing | None
    missed: bool
    age_steps: int
    age_ms: float
    timings_ms: dict[str, float] | None  # of the inference whose answer arrived in this step; null without one
    state: str | None  # hash of what the policy remembered after it
    frame: int | None  # checksum of the frame taken in this step; null without one


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
    """Read a record; a last line that was cut off is left out. ArtifactError names the line that is damaged."""
    try:
        content = read_file(path, _MAX_RECORD_BYTES)
    except OSError as error:
        remedy = "Write one with `rfedge run --record`."
        raise ArtifactError(f"record {path}", got=error.strerror, expected="a file", remedy=remedy) from None
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
        self._index += 1
        return self._steps[self._index].lag_ms / 1000.0

    def overdue_s(self) -> float:
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
    expected = "a line of `rfedge run --record` of this version"
    return ArtifactError(f"line {number} of {path}", got=got, expected=expected, remedy="The file is damaged or no record.")


class RunRecorder(contextlib.AbstractContextManager["RunRecorder"]):
    """Writes one run to a new file, and on demand every frame that the loop took into the folder `path` + ".frames".

    A robot under control is not left to itself for the sake of a record: `error` says why the rest of the run is not in the
    file, such as a full disk. Raises ConfigError if the file or the folder exists, or cannot be made.
    """

    def __init__(self, path: Path, header: RunHeader, *, with_frames: bool = False) -> None:
        self._frames = path.with_name(path.name + FRAMES_SUFFIX) if with_frames else None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._frames is not None:
                self._frames.mkdir()
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            remedy = "Choose another one."
            raise ConfigError(f"--record {path}", got=error.strerror, expected="a free name", remedy=remedy) from None
        self._path = path
        self._started_s = time.monotonic()
        self._episode = 0
        self.error: str | None = None
        self._write(header.model_dump(mode="json"))
        if self.error is not None:
            self.close()
            path.unlink()
            remedy = "Choose another disk."
            raise ConfigError(f"--record {path}", got=self.error, expected="room for the record", remedy=remedy)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def begin_episode(self, episode: int, *, seed: int | None, instruction: str) -> None:
        self._episode = episode
        self._write(EpisodeLine(episode=episode, seed=seed, instruction=instruction).model_dump(mode="json"))

    def add(self, step: ControlStep) -> None:
        inference, observation = step.inference, step.observation
        self._write(
            {
                "kind": "step",
                "episode": self._episode,
                "step": step.index,
                "at_s": round(time.monotonic() - self._started_s, 6),
                "lag_ms": 1000.0 * step.lag_s,
                "overdue_ms": 1000.0 * step.overdue_s,
                "elapsed_ms": round(step.elapsed_ms, 4),
                "instruction": step.instruction,
                "raw": _numbers(step.action),
                "sent": _numbers(step.sent),
                "interventions": step.interventions,
                "missing": step.missing,
                "missed": step.is_missed,
                "age_steps": step.age_steps,
                "age_ms": round(step.age_ms, 4),
                "timings_ms": None if inference is None else {k: round(v, 4) for k, v in inference.timings_ms.items()},
                "state": None if inference is None or inference.state is None else state_hash(inference.state),
                "frame": None if observation is None else frame_checksum(observation),
            }
        )
        if self._frames is not None and observation is not None and self.error is None:
            self._write_frame(self._frames, step.index, observation)

    def end_episode(self, summary: LoopSummary) -> None:
        self._write(EndLine(episode=self._episode, ended=summary.ended, success=summary.success).model_dump(mode="json"))

    def fail(self, error: BaseException) -> None:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        self._write(EndLine(episode=self._episode, ended="error", success=None, error=text).model_dump(mode="json"))

    def _write(self, line: dict[str, Any]) -> None:
        if self.error is not None:
            return  # a line after a cut one would be read as part of it
        text = json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        try:
            if self._file.write(text) != len(text):
                self._fail("a line that was cut short")
        except OSError as error:
            self._fail(error.strerror or str(error))

    def _fail(self, error: str) -> None:
        self.error = error
        logger.warning("record %s: %s; the run goes on without it", self._path, error)

    def _write_frame(self, folder: Path, index: int, observation: Observation) -> None:
        arrays: dict[str, Any] = {"rgb_static": observation.static, "rgb_gripper": observation.gripper}
        if observation.state is not None:
            arrays["robot_obs"] = observation.state
        name = _frame_name(self._episode, index)
        temporary = folder / (name + _TEMPORARY)  # renamed, not synced: a disk must not hold up the loop
        try:
            np.savez(temporary, **arrays)
            temporary.replace(folder / f"{name}.npz")
        except OSError as error:
            self._fail(error.strerror or str(error))
            with contextlib.suppress(OSError):
                temporary.unlink()


def _frame_name(episode: int, step: int) -> str:
    return f"episode_{episode:04d}_step_{step:06d}"


def read_frame(folder: Path, episode: int, step: int) -> Observation:
    """Return the frame that a record with frames kept for a control step; raises ArtifactError or ContractError."""
    path = folder / f"{_frame_name(episode, step)}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Observation.from_dict({key: arrays[key] for key in arrays})
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ArtifactError(
            f"frame {path}",
            got=error.strerror if isinstance(error, OSError) and error.strerror else str(error),
            expected="a frame of the recorded run",
            remedy="Record the run with --record-frames, and copy the folder beside the record.",
        ) from None


def state_hash(state: PolicyState) -> str:
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    for part in dataclasses.fields(state):
        value = np.ascontiguousarray(getattr(state, part.name))
        digest.update(f"{part.name} {value.dtype} {value.shape}".encode())
        digest.update(value.data)
    return digest.hexdigest()


def frame_checksum(observation: Observation) -> int:
    checksum = zlib.crc32(np.ascontiguousarray(observation.static).data)
    checksum = zlib.crc32(np.ascontiguousarray(observation.gripper).data, checksum)
    return checksum if observation.state is None else zlib.crc32(np.ascontiguousarray(observation.state).data, checksum)


def _numbers(action: npt.NDArray[np.float32]) -> list[float | None]:
    # A float32 as a decimal double comes back as the same float32. NaN and Inf are no JSON; they become null.
    return [value if math.isfinite(value) else None for value in action.tolist()]
