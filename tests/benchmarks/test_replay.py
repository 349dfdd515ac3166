from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rfedge.errors import ArtifactError, ConfigError
from rfedge.messages import Observation
from rfedge.runtimes import RuntimeSettings
from rfedge.runtimes.control.limits import LatePolicy
from rfedge.runtimes.control.safety import SafetyLimits
from rfedge.runtimes.rollout import Goal
from rfedge.runtimes.rollout.plan import RolloutPlan
from rfedge.runtimes.rollout.replay import recorded_instructions, replay_run
from rfedge.runtimes.rollout.rollouts import RolloutReport, run_rollouts
from rfedge.runtimes.rollout.run_record import read_run
from tests.errors import raises
from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle


class MovingWorld:
    """Stands for a simulator: what the cameras show follows from the actions alone."""

    control_hz, renderer, looks, scene = 30, "none", "shades", "D"

    def __enter__(self) -> MovingWorld:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def restore(self) -> None:
        self.state = np.zeros(15)
        self.num_actions = 0

    def observe(self) -> Observation:
        rng = np.random.default_rng([self.num_actions, *(abs(self.state[:3]) * 1e6).astype(int)])
        static = rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)
        return Observation(static=static, gripper=static[:84, :84].copy(), state=self.state.copy())

    def advance(self, action: np.ndarray) -> None:
        self.num_actions += 1
        self.state[:6] += 0.02 * action[:6]


@pytest.fixture(autouse=True)
def _world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RolloutPlan, "open_environment", lambda *_, **__: MovingWorld())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "b"
    write_handmade_bundle(path, tiny_config(chunk_size=6))
    return path


def _plan(bundle: Path, record: Path, **changes: object) -> RolloutPlan:
    fields = {"instruction": "push the button", "episodes": 2, "max_steps": 20, "settings": RuntimeSettings(threads=1)}
    return RolloutPlan(bundle=bundle, record=record, **(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mode": "open-loop", "execute_steps": 4, "record_frames": True},
        {"mode": "open-loop", "execute_steps": 2, "ensemble": 0.01, "limits": SafetyLimits(max_step_m=0.005)},
        {"mode": "overlapped", "late": LatePolicy("repeat")},
        {"mode": "overlapped", "execute_steps": 3, "late": LatePolicy("hold")},
        {"realtime": True, "speed": 400.0 / 30.0, "late": LatePolicy("hold")},
    ],
)
def test_a_replay_is_the_run_bit_for_bit(bundle: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    """In overlapped mode and with deadlines too, where what happens depends on the machine's speed."""
    path = tmp_path / "run.jsonl"
    report = run_rollouts(_plan(bundle, path, **changes))
    steps: list[int] = []
    replay = replay_run(path, on_step=lambda _, step: steps.append(step.index))
    assert (replay.difference, replay.cause, replay.is_cut, replay.changed_versions) == (None, None, False, {})
    assert (replay.num_steps, replay.num_episodes) == (40, 2)
    assert steps == [*range(20), *range(20)]
    assert sum(episode.num_steps for episode in report.episodes) == 40
    assert RolloutReport.model_validate_json(report.model_dump_json()) == report


def test_recorded_frames_stand_in_for_the_simulator(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run_rollouts(_plan(bundle, path, mode="open-loop", execute_steps=4, record_frames=True))
    report = replay_run(path, from_frames=True)
    assert (report.difference, report.cause, report.num_steps, report.largest_difference) == (None, None, 40, 0.0)
    step = read_run(path).episodes[0].steps[4]
    assert step.raw[0] is not None
    _edit(path, 2 + 4, "raw", [step.raw[0] + 0.004, *step.raw[1:]])
    assert replay_run(path, from_frames=True).num_steps == 4
    near = replay_run(path, from_frames=True, tolerance=0.005)
    assert (near.difference, near.num_steps) == (None, 40)
    assert near.largest_difference == pytest.approx(0.004, rel=0.01)
    next(tmp_path.glob("run.jsonl.frames/*_000005.npz")).unlink()
    with raises(ArtifactError, got="No such file or directory"):
        replay_run(path, from_frames=True, tolerance=0.005)
    with raises(ConfigError, "tolerance"):
        replay_run(path, tolerance=0.1)


def _edit(path: Path, line_number: int, key: str, value: object) -> None:
    lines = path.read_text().splitlines()
    line = json.loads(lines[line_number]) | {key: value}
    path.write_text("\n".join([*lines[:line_number], json.dumps(line), *lines[line_number + 1 :]]) + "\n")


def test_the_first_difference_is_named_and_ends_the_replay(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run_rollouts(_plan(bundle, path))
    step = read_run(path).episodes[1].steps[3]
    sent = list(step.sent)
    sent[2] = float(np.nextafter(np.float32(sent[2]), np.float32(2)))
    _edit(path, 1 + 22 + 1 + 3, "sent", sent)  # header, first episode with its two other lines, line of the second
    report = replay_run(path)
    assert (report.difference.episode, report.difference.step, report.difference.what) == (1, 3, "sent action")
    assert report.difference.recorded.split()[:2] == report.difference.replayed.split()[:2]
    assert report.difference.recorded != report.difference.replayed
    assert report.num_steps == 23
    assert report.cause is None


def test_a_changed_frame_is_named_as_the_cause(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run_rollouts(_plan(bundle, path, episodes=1))
    _edit(path, 2 + 5, "frame", 1)
    _edit(path, 2 + 7, "raw", [0.0] * 7)
    report = replay_run(path)
    assert (report.cause.step, report.cause.what, report.cause.recorded) == (5, "frame", "00000001")
    assert (report.difference.step, report.difference.what) == (7, "raw action")


def test_a_cut_record_is_replayed_up_to_its_last_whole_line(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run_rollouts(_plan(bundle, path))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:30]) + lines[30][:50])
    report = replay_run(path)
    assert (report.is_cut, report.difference, report.num_steps) == (True, None, 20 + 30 - 24)


def test_another_bundle_is_refused_and_a_moved_one_accepted(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run_rollouts(_plan(bundle, path, episodes=1))
    write_handmade_bundle(tmp_path / "other", tiny_config(chunk_size=6), seed=9)
    with raises(ArtifactError, "bundle ...other", got="a manifest with sha256 ...", expected="...was recorded"):
        replay_run(path, bundle=tmp_path / "other")
    _edit(path, 0, "bundle", str(tmp_path / "gone"))
    with raises(ArtifactError, "...gone"):
        replay_run(path)
    assert replay_run(path, bundle=bundle).difference is None
    header = json.loads(path.read_text().splitlines()[0])
    _edit(path, 0, "plan", header["plan"] | {"max_steps": "many"})
    with raises(ArtifactError, "plan in ...", got="max_steps: Input should be a valid integer..."):
        replay_run(path, bundle=bundle)


def test_a_run_that_ended_in_an_error_is_replayed_to_it(bundle: Path, tmp_path: Path) -> None:
    """The camera fails in step 3; its replay shows the three steps before."""
    path = tmp_path / "run.jsonl"

    def fail(episode: int, step: object) -> None:
        if getattr(step, "index", 0) == 2:
            raise OSError("no camera")

    with pytest.raises(OSError, match="no camera"):
        run_rollouts(_plan(bundle, path), on_step=fail)
    (episode,) = read_run(path).episodes
    assert (episode.end.ended, episode.end.error) == ("error", "OSError: no camera")
    report = replay_run(path)
    assert (report.num_steps, report.difference) == (3, None)


def test_plans_that_contradict_themselves_are_refused(bundle: Path) -> None:
    with raises(ConfigError, "late", got="no control rate", expected="deadlines to miss"):
        RolloutPlan(bundle=bundle, late=LatePolicy("hold"))
    with raises(ConfigError, "--record-frames", got="no record", expected="--record FILE"):
        RolloutPlan(bundle=bundle, record_frames=True)


def test_a_replay_gets_each_instruction_in_the_step_in_which_the_run_got_it() -> None:
    steps = [SimpleNamespace(instruction=words) for words in ("open", None, None, "push", None)]
    ask = recorded_instructions(steps, Goal("open", None))  # type: ignore[arg-type]
    assert [ask() for _ in range(6)] == ["open", "open", "open", "push", "push", "push"]


def test_a_policy_with_another_instruction_acts_otherwise(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run_rollouts(_plan(bundle, path, episodes=1))
    _edit(path, 2 + 6, "instruction", "open the drawer")
    report = replay_run(path)
    assert (report.difference.step, report.cause.what, report.cause.step) == (6, "state", 6)
