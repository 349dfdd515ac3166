"""What a measurement of success refuses, and how steps and training make a mode."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rfedge.benchmarks.report.bundles import loop_name
from rfedge.benchmarks.success.plan import EmulatedEngineLoop
from rfedge.benchmarks.success.run import run_success
from rfedge.benchmarks.success.sweep import SweepPlan
from rfedge.bundle.artifact import EngineForm, TensorRtRecord, load_bundle, write_manifest
from rfedge.config import preset
from rfedge.errors import ArtifactError, ConfigError, ContractError
from rfedge.messages import Observation
from rfedge.runtimes.rollout.policy_source import PolicyLoop
from rfedge.runtimes.rollout.rollout_session import Simulator
from tests.benchmarks.joint_world import joint_chains
from tests.benchmarks.seen_world import SeenSimulator
from tests.benchmarks.success_plans import plan_of, write_policy
from tests.errors import raises

CHAINS = joint_chains(2)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return write_policy(folder / "float"), write_policy(folder / "integer", seed=0, requested="int8")


def test_a_measurement_that_cannot_begin_leaves_nothing(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    with raises(ConfigError, expected="...did you mean 'playtable'..."):
        run_success(plan_of(bundles, worlds=(Simulator("playtabel"),)), CHAINS, tmp_path / "run")
    few_words = write_policy(tmp_path / "few-words", decoder=preset("tiny").decoder.model_dump())
    with raises(ContractError, "instruction", got="... tokens", expected="at most 16"):
        run_success(plan_of((bundles[0], few_words)), CHAINS, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["few-words"]


def test_how_steps_and_training_make_a_mode(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    jumping = write_policy(tmp_path / "jumping", frame_stride=2)
    report = run_success(plan_of((bundles[0], jumping), labels=("every", "second"), execute_steps=(1, 2, 4)), CHAINS[:1])
    assert [(row.policy, row.execute_steps, row.mode, row.kind) for row in report.rows] == [
        ("every", 1, "closed-loop", "closed-loop"),
        ("every", 2, "open-loop", "open-loop"),
        ("every", 4, "open-loop", "open-loop"),
        ("second", 1, "closed-loop", "other"),
        ("second", 2, "jump-step", "jump-step"),
        ("second", 4, "open-loop", "other"),
    ]


def test_without_steps_each_policy_runs_as_it_was_trained(
    bundles: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jumping = write_policy(tmp_path / "jumping", frame_stride=2)
    plan = plan_of((bundles[0], jumping), labels=("every", "second"), execute_steps=())
    rows = run_success(plan, CHAINS[:1]).rows
    assert [(row.policy, row.execute_steps, row.mode) for row in rows] == [
        ("every", 1, "closed-loop"),
        ("second", 2, "jump-step"),
    ]
    assert not caplog.messages
    run_success(replace(plan, execute_steps=(1,)), CHAINS[:1])
    assert [message[:70] for message in caplog.messages] == [
        "execute_steps is 1 but the policy was trained on frames 2 control step"
    ], "another time base is one warning"
    whole = run_success(replace(plan, mode="open-loop"), CHAINS[:1]).rows
    assert [row.execute_steps for row in whole] == [4, 4]


def test_kinds_of_rows_are_chosen(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    jumping = write_policy(tmp_path / "jumping", frame_stride=2)
    plan = plan_of((bundles[0], jumping), labels=("every", "second"), execute_steps=(1, 2))
    report = run_success(replace(plan, kinds=("closed-loop", "jump-step")), CHAINS[:1])
    assert [(row.policy, row.execute_steps) for row in report.rows] == [("every", 1), ("second", 2)]
    with raises(ConfigError, "--kinds", got="'jump'", expected="one of ...jump-step..."):
        replace(plan, kinds=("jump",))
    with raises(ConfigError, "--kinds", got="other", expected="some of closed-loop, open-loop", remedy="Leave it out."):
        run_success(plan_of(bundles, execute_steps=(1, 4), kinds=("other",)), CHAINS[:1])


def test_an_ensemble_is_a_row_of_its_own_where_chunks_overlap(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    plain = run_success(plan_of(bundles[:1], execute_steps=(1, 4)), CHAINS, tmp_path / "run")
    plan = plan_of(bundles[:1], execute_steps=(1, 4), ensembles=(0.0, None, -1.0))
    report = run_success(plan, CHAINS, tmp_path / "run")
    assert [(row.name, loop_name(row.model_dump()), row.ensemble) for row in report.rows] == [
        ("fp32 k1 ensemble 0 D evaluation", "closed-loop, ensemble", 0.0),
        ("fp32 k1 D evaluation", "closed-loop", None),
        ("fp32 k1 ensemble -1 D evaluation", "closed-loop, ensemble", -1.0),
        ("fp32 k4 D evaluation", "open-loop", None),
    ]
    even, newest, younger, _ = report.rows
    assert [row.model_dump(exclude={"paired"}) for row in (newest, report.rows[3])] == [
        row.model_dump(exclude={"paired"}) for row in plain.rows
    ], "rows without an ensemble are those of before"
    assert (even.paired, newest.paired and newest.paired.reference) == (None, even.name)
    assert len({even.jerk, newest.jerk, younger.jerk}) == 3, "each plays something else"
    journal = (tmp_path / "run" / "chains" / "fp32-k1-ensemble--1-D-evaluation" / "chains.jsonl").read_text()
    assert json.loads(journal.splitlines()[0])["arguments"]["agent"]["ensemble"] == "-1"
    assert run_success(plan, CHAINS, tmp_path / "run") == report
    with raises(ConfigError, "--ensemble", got="None twice", expected="each once"):
        replace(plan, ensembles=(None, None))


def test_what_is_not_possible_is_said(bundles: tuple[Path, Path]) -> None:
    with raises(ConfigError, "fp32 with 8 steps per call: execute_steps: got 8, expected 1 to 4 (chunk_size)..."):
        run_success(plan_of(bundles, execute_steps=(1, 8)), CHAINS[:1])
    with raises(ConfigError, "...expected 1 in closed-loop mode..."):
        run_success(plan_of(bundles, mode="closed-loop"), CHAINS[:1])
    with raises(ConfigError, "...mode jump-step: got a policy with frame_stride 1..."):
        run_success(plan_of(bundles, mode="jump-step"), CHAINS[:1])
    report = run_success(plan_of(bundles, execute_steps=(4, 8), skip_impossible=True), CHAINS[:1])
    assert [row.execute_steps for row in report.rows] == [4, 4]
    assert [(item.policy, item.execute_steps) for item in report.not_possible] == [("fp32", 8), ("int8", 8)]
    assert "expected 1 to 4 (chunk_size)" in report.not_possible[0].reason
    with raises(ConfigError, "fp32 with 8 steps..."):
        run_success(plan_of(bundles, execute_steps=(8,), skip_impossible=True), CHAINS[:1])


@pytest.mark.parametrize(
    ("changes", "subject", "got"),
    [
        ({"execute_steps": (0,)}, "execute_steps", 0),
        ({"execute_steps": (2, 2)}, "--execute-steps", "2 twice"),
        ({"labels": ("one",)}, "--label", "1 for 2 bundles"),
        ({"labels": ("a b", "a/b")}, "label", "'a b' twice"),
        ({"trained_on": ("A",)}, "--trained-on", "1 for 2 bundles"),
        ({"mode": "overlapped"}, "mode", "'overlapped'"),
        ({"seed": -1}, "seed", -1),
        ({"worlds": (SeenSimulator(), SeenSimulator())}, "--scene", "D twice"),
    ],
)
def test_plans_that_cannot_run(bundles: tuple[Path, Path], changes: dict[str, object], subject: str, got: object) -> None:
    with raises(ConfigError, subject, got=got):
        run_success(plan_of(bundles, **changes), CHAINS[:1])


def test_nothing_to_run_and_bundles_that_are_none(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    with raises(ConfigError, "bundles", got=0):
        plan_of(())
    with raises(ConfigError, remedy="Raise --num or --single-tasks."):
        run_success(plan_of(bundles), ())
    with raises(ArtifactError, got="no folder"):
        run_success(plan_of((tmp_path / "none",)), CHAINS)


def test_engines_are_emulated_in_rows_of_their_own(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    path = write_policy(tmp_path / "engines", requested="int8")
    record = TensorRtRecord(graphs={"backbone": EngineForm(floats="fp16", islands={}), "head": EngineForm(floats="fp16")})
    write_manifest(path, load_bundle(path).manifest.model_copy(update={"tensorrt": record}))
    report = run_success(plan_of((path,), emulate_engines=True, execute_steps=(1,)), CHAINS)
    plain, emulated = report.policies
    assert (plain.precision, plain.backend) == ("int8", None)
    assert (emulated.precision, emulated.backend) == ("int8 + fp16", "tensorrt, emulated")
    assert report.rows[1].paired.reference == report.rows[0].name
    rng = np.random.default_rng(0)
    frame = Observation(
        static=rng.integers(0, 256, (200, 200, 3), np.uint8), gripper=rng.integers(0, 256, (84, 84, 3), np.uint8)
    )
    actions = []
    for make in (PolicyLoop, EmulatedEngineLoop):
        with make(path).load() as policy:
            policy.reset("open the drawer")
            actions.append(policy.act(frame).actions)
    assert 0 < np.abs(actions[1] - actions[0]).max() < 2e-2
    with raises(ConfigError, "--emulate-engines of bundle ...", got="engines that compute in the types of its graphs"):
        run_success(plan_of(bundles, emulate_engines=True), CHAINS)
    with raises(ConfigError, "--emulate-engines", got="a measurement that is timed too"):
        SweepPlan(plan_of((path,), emulate_engines=True))
