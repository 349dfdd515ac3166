import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rfedge.errors import ArtifactError, ConfigError
from rfedge.messages import PolicyState
from rfedge.runtimes.control.loop import ControlLoop
from rfedge.runtimes.control.modes import ControlStep, OpenLoop
from rfedge.runtimes.control.safety import SafetyGuard, SafetyLimits
from rfedge.runtimes.rollout.run_record import RecordedPace, RunHeader, RunRecorder, read_run, state_hash
from tests.errors import raises
from tests.runtimes.loop_parts import CountingPolicy, Robot

HEADER = RunHeader(
    recorded_at="2026-11-21T20:00:00+00:00",
    bundle="b",
    manifest_sha256="00",
    mode="open-loop",
    plan={"seed": 3},
    environment={"name": "none"},
    versions={"python": "3"},
)


def _record(path: Path, *, num_steps: int = 5, with_frames: bool = False) -> list[np.ndarray]:
    robot = Robot(np.arange(15.0))
    with RunRecorder(path, HEADER, with_frames=with_frames) as recorder:
        for episode in range(2):
            recorder.begin_episode(episode, seed=3 + episode, instruction="go")
            loop = ControlLoop(OpenLoop(CountingPolicy(), 3), robot, guard=SafetyGuard(SafetyLimits(max_step_m=0.002)))
            robot.num_stops = 0
            recorder.end_episode(loop.run("go", max_steps=num_steps, on_step=recorder.add))
    return robot.actions


def test_a_record_is_read_back_as_it_was(tmp_path: Path) -> None:
    sent = _record(tmp_path / "run.jsonl")
    record = read_run(tmp_path / "run.jsonl")
    assert record.header == HEADER
    assert not record.is_cut
    assert [(e.begin.seed, e.begin.instruction, e.end.ended if e.end else None) for e in record.episodes] == [
        (3, "go", "max-steps"),
        (4, "go", "max-steps"),
    ]
    again = np.concatenate([episode.sent() for episode in record.episodes])
    assert again.tobytes() == np.array(sent).tobytes(), "bit for bit"
    first = record.episodes[0].steps
    assert [step.age_steps for step in first] == [0, 1, 2, 0, 1]
    assert [step.timings_ms for step in first] == [{"total": 1.0}, None, None, {"total": 1.0}, None]
    assert [step.frame is None for step in first] == [False, True, True, False, True]
    assert first[0].instruction == "go"
    assert first[3].raw[0] == pytest.approx(0.1)
    assert first[3].interventions == ("clamped", "translation-limit")
    assert record.arrivals() == {0: 0, 3: 3, 5: 5, 8: 8}
    pace = RecordedPace(first)
    assert [(pace.wait(), pace.overdue_s()) for _ in first] == [(0.0, 0.0)] * 5
    for line in (tmp_path / "run.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_frames_lie_beside_the_file(tmp_path: Path) -> None:
    _record(tmp_path / "run.jsonl", with_frames=True)
    folder = tmp_path / "run.jsonl.frames"
    names = [f"episode_{episode:04d}_step_{step:06d}.npz" for episode in range(2) for step in (0, 3)]
    assert sorted(path.name for path in folder.iterdir()) == names
    with np.load(folder / names[0], allow_pickle=False) as frame:
        assert frame["rgb_static"].shape == (200, 200, 3)
        np.testing.assert_array_equal(frame["robot_obs"], np.arange(15.0))
    with raises(ConfigError, "--record ...run.jsonl", got="File exists", expected="a free name"):
        RunRecorder(tmp_path / "run.jsonl", HEADER)
    assert read_run(tmp_path / "run.jsonl").episodes, "the old one is still there"


@pytest.mark.parametrize("cut", [1, 2, 40, 300])
def test_a_cut_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    _record(tmp_path / "run.jsonl")
    whole = (tmp_path / "run.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    last_step = b"".join(lines[:-1])  # up to and with the last step of the second episode
    (tmp_path / "cut.jsonl").write_bytes(last_step[:-cut])
    record = read_run(tmp_path / "cut.jsonl")
    assert record.is_cut
    assert [len(episode.steps) for episode in record.episodes] == [5, 4]
    assert record.episodes[1].end is None


def _change(key: str, value: object) -> Callable[[list[bytes]], list[bytes]]:
    def damage(lines: list[bytes]) -> list[bytes]:
        return [*lines[:3], json.dumps(json.loads(lines[3]) | {key: value}).encode(), *lines[4:]]

    return damage


@pytest.mark.parametrize(
    ("damage", "number", "got"),
    [
        (lambda lines: [*lines[:3], b'{"kind": "st', *lines[4:]], 4, "Invalid JSON..."),
        (lambda lines: lines[1:], 1, "no header"),
        (lambda lines: [*lines[:3], *lines[4:]], 4, "a line of kind 'step' out of order"),
        (lambda lines: [*lines[:2], lines[7], *lines[3:]], 4, "a line of kind 'step' out of order"),
        (lambda lines: [lines[0], *lines[2:]], 2, "a line of kind 'step' out of order"),
        (_change("sent", [0.0] * 6), 4, "step.sent: Tuple should have at least 7 items..."),
        (_change("more", 1), 4, "step.more: Extra inputs are not permitted"),
        (_change("lag_ms", "soon"), 4, "step.lag_ms: Input should be a valid number..."),
        (
            lambda lines: [b'{"kind":"header","format":"rfedge-run","schema_version":9}', *lines[1:]],
            1,
            "...: ... should be 2",
        ),
    ],
)
def test_a_damaged_record_is_one_line(
    tmp_path: Path, damage: Callable[[list[bytes]], list[bytes]], number: int, got: str
) -> None:
    _record(tmp_path / "run.jsonl")
    lines = (tmp_path / "run.jsonl").read_bytes().splitlines()
    (tmp_path / "bad.jsonl").write_bytes(b"\n".join(damage(lines)) + b"\n")
    expected = "a line of `rfedge run --record` of this version"
    with raises(ArtifactError, f"line {number} of {tmp_path}/bad.jsonl", got=got, expected=expected):
        read_run(tmp_path / "bad.jsonl")


def test_no_record_is_one_line(tmp_path: Path) -> None:
    with raises(ArtifactError, "record ...", got="No such file or directory", expected="a file"):
        read_run(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with raises(ArtifactError, "line 1 of ...", got="no header"):
        read_run(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(256)) * 9)
    with raises(ArtifactError, "line 1 of ...", got="Invalid JSON..."):
        read_run(tmp_path / "binary.jsonl")


def test_the_hash_covers_all_that_a_policy_remembers() -> None:
    def state(**changes: object) -> PolicyState:
        zeros = {name: np.zeros((2, 1, 3), np.float32) for name in ("h", "c", "history", "media")}
        return PolicyState(**{**zeros, "num_steps": 1, **changes})  # type: ignore[arg-type]

    one = np.zeros((2, 1, 3), np.float32)
    one[1, 0, 2] = 1e-30
    hashes = [state_hash(state(**{name: one})) for name in ("h", "c", "history", "media")]
    hashes += [state_hash(state()), state_hash(state(num_steps=2)), state_hash(state(h=np.zeros((1, 1, 6), np.float32)))]
    assert len(set(hashes)) == 7
    assert state_hash(state()) == state_hash(state())


@pytest.mark.attack
def test_a_full_disk_ends_the_record_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    robot, path = Robot(np.arange(15.0)), tmp_path / "run.jsonl"
    with RunRecorder(path, HEADER, with_frames=True) as recorder:
        recorder.begin_episode(0, seed=3, instruction="go")

        def fill(step: ControlStep) -> None:
            if step.index == 2:
                recorder._file.close()
                recorder._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 - the recorder closes it
            recorder.add(step)

        summary = ControlLoop(OpenLoop(CountingPolicy(), 3), robot).run("go", max_steps=6, on_step=fill)
        recorder.end_episode(summary)
    assert (summary.ended, len(robot.actions), robot.num_stops) == ("max-steps", 6, 1)
    assert recorder.error == "No space left on device"
    assert caplog.messages[1:] == [f"record {path}: No space left on device; the run goes on without it"]
    record = read_run(path)
    assert [len(episode.steps) for episode in record.episodes] == [2]
    assert len(list((tmp_path / "run.jsonl.frames").iterdir())) == 1
