"""`rfedge tune`: duels beyond a noise floor, the gates of the bundle, and who follows the choice."""

from pathlib import Path

import numpy as np
import pytest

from rfedge.benchmarks.latency import tune as library
from rfedge.benchmarks.latency.tune import Candidate, TunePlan, run_tune
from rfedge.bundle.artifact import load_bundle
from rfedge.bundle.traces import PROOF_STEPS, load_proof, rollout, save_proof
from rfedge.errors import ArtifactError, ConfigError
from rfedge.records.statistics import Ratio
from rfedge.runtimes.backends.base import RuntimeSettings
from rfedge.runtimes.backends.registry import AUTO, open_parts
from rfedge.runtimes.backends.tuned import TunedChoice, choice_file, find_choice, tuning_key
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from tests.errors import raises
from tests.runtimes.handmade_bundle import tiny_config, write_handmade_bundle


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_handmade_bundle(tmp_path / "bundle", tiny_config())
    return tmp_path / "bundle"


def equal() -> Ratio:
    return Ratio(value=1.0, low=1.0, high=1.0)


def write_choice(bundle: Path, **changes: object) -> TunedChoice:
    key = tuning_key(load_bundle(bundle))
    fields = {"backend": "onnxruntime", "threads": 1, "spinning": "never", "precision_hint": "f32", "call_ms": 1.0}
    choice = TunedChoice.model_validate(
        {"measured_at": "now", "key": key, "speedup": equal(), "noise_floor": equal(), **fields, **changes}
    )
    choice_file(key).parent.mkdir(parents=True)
    choice.write(choice_file(key))
    return choice


def test_a_choice_fills_what_the_user_left_at_its_default(bundle: Path) -> None:
    assert find_choice(bundle) is None
    assert open_parts(AUTO, bundle, RuntimeSettings()).tuned == ""
    choice = write_choice(bundle)
    assert find_choice(bundle) == choice
    parts = open_parts(AUTO, bundle, RuntimeSettings())
    assert parts.backend == "onnxruntime"
    assert parts.tuned == choice.describe()
    with EdgePolicy(parts) as policy:
        settings = policy.parts.backbone.effective_settings()
        assert (settings["threads"], settings["spinning"]) == ("1", "never")
    assert choice.settings(RuntimeSettings(threads=2)).threads == 2
    assert open_parts("onnxruntime", bundle, RuntimeSettings()).tuned == ""


def test_a_choice_is_for_these_graphs_and_this_machine(bundle: Path, tmp_path: Path) -> None:
    choice = write_choice(bundle)
    write_handmade_bundle(tmp_path / "other", tiny_config(), seed=1)
    assert find_choice(tmp_path / "other") is None
    assert find_choice(tmp_path / "nothing") is None
    choice_file(choice.key).write_text("{}")
    assert find_choice(bundle) is None


def test_tuning_writes_what_auto_follows(bundle: Path) -> None:
    report = run_tune(TunePlan(bundle, budget_s=3))
    assert report.duels[0].verdict == "noise floor"
    assert report.duels[0].speedup == report.choice.noise_floor
    assert {duel.verdict.split(":")[0] for duel in report.duels[1:]} <= {"faster", "not faster", "refused"}
    for duel in report.duels[1:]:
        assert duel.metrics["action_max_error"] < 1e-3 or duel.verdict.startswith("refused")
    assert find_choice(bundle) == report.choice
    fastest = [duel.name for duel in report.duels if duel.verdict == "faster"]
    chosen = Candidate(report.choice.backend, report.choice.settings(RuntimeSettings()))
    assert chosen.name == (fastest[-1] if fastest else Candidate().name)


def test_a_candidate_past_the_gates_is_not_even_timed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "missed", lambda metrics, thresholds: ["action_max_error 1 of 0"])
    monkeypatch.setattr(library._Tuning, "_backends", lambda self: iter(()))
    report = run_tune(TunePlan(bundle, budget_s=3))
    assert all(duel.verdict == "refused: action_max_error 1 of 0" for duel in report.duels[1:])
    assert all(duel.speedup is None for duel in report.duels[1:])
    assert report.choice.backend == "onnxruntime"
    assert report.choice.speedup == equal()


def test_no_duel_begins_after_the_budget(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(0, 100000, 1000))
    monkeypatch.setattr(library.time, "monotonic", lambda: float(next(seconds)))
    report = run_tune(TunePlan(bundle, budget_s=1))
    assert len(report.duels) == 1
    assert report.not_tried
    with raises(ConfigError, "budget_s", got=0):
        TunePlan(bundle, budget_s=0)


def test_a_proof_comes_back_as_it_was_written(bundle: Path, tmp_path: Path) -> None:
    with EdgePolicy.load(bundle) as policy:
        rng = np.random.default_rng(0)
        episode = [policy.parts.contract.backbone.sample_inputs(rng, dynamic_size=5) for _ in range(PROOF_STEPS + 2)]
        trace = rollout(policy.config, policy.parts.backbone.infer, policy.parts.head.infer, [episode])
        save_proof(tmp_path / "proof.npz", [episode], trace)
        episodes, reference = load_proof(tmp_path / "proof.npz")
        again = rollout(policy.config, policy.parts.backbone.infer, policy.parts.head.infer, episodes)
    assert len(episodes[0]) == PROOF_STEPS
    np.testing.assert_array_equal(reference.pose, trace.pose[:PROOF_STEPS])
    np.testing.assert_array_equal(again.h, reference.h)
    (tmp_path / "proof.npz").write_bytes(b"damaged")
    with raises(ArtifactError, "proof proof.npz", expected="recorded frames"):
        load_proof(tmp_path / "proof.npz")
