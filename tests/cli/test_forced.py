"""A bundle that missed its gates and was written with --force: it runs, and nobody can overlook what it is."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rfedge.bundle.artifact import Manifest, ParityRecord, load_bundle, write_manifest
from rfedge.bundle.gates import missed
from tests.runtimes.handmade_bundle import write_handmade_bundle

WARNING = "its proof missed action_max_error 0.31 (allowed <= 0.05); min_feature_cosine 0.9 (allowed >= 0.999)"
PARITY = ParityRecord(
    num_steps=8,
    inputs="random frames, seed 0",
    metrics={"action_max_error": 0.31, "min_feature_cosine": 0.9, "gripper_flip_rate": 0.0},
    thresholds={"action_max_error": 0.05, "min_feature_cosine": 0.999, "gripper_flip_rate": 0.005},
    passed=False,
    forced=True,
)


@pytest.fixture(scope="module")
def forced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forced") / "bundle"
    write_handmade_bundle(path)
    manifest: Manifest = load_bundle(path).manifest.model_copy(update={"parity": PARITY})
    write_manifest(path, manifest)
    return path


def rfedge(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rfedge.cli.app", *(str(argument) for argument in arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"})
    assert result.returncode == 0, result.stderr
    return result


def test_a_forced_bundle_warns_once_and_runs(forced: Path) -> None:
    pytest.importorskip("mujoco")
    result = rfedge("run", forced, "--instruction", "open the drawer", "--max-steps", 1, "--json")
    warnings = [line for line in result.stderr.splitlines() if "warning" in line]
    assert warnings == [f"warning: {forced} was exported with --force; {WARNING}"]
    assert result.stderr.index("warning") < result.stderr.index("closed-loop"), "before the report"
    report = json.loads(result.stdout)
    assert report["forced_past"] == list(PARITY.forced_past)
    assert report["episodes"][0]["num_steps"] == 1


def test_a_forced_bundle_says_so_when_it_is_inspected(forced: Path, tmp_path: Path) -> None:
    result = rfedge("inspect", forced, "--device", "thor-t5000", "--json")
    assert f"warning: exported with --force; {WARNING}" in result.stderr
    assert json.loads(result.stdout)["forced_past"] == list(PARITY.forced_past)
    write_handmade_bundle(tmp_path / "bundle")
    plain = rfedge("inspect", tmp_path / "bundle", "--device", "thor-t5000", "--json")
    assert "warning" not in plain.stderr
    assert json.loads(plain.stdout)["forced_past"] == []


def test_only_missed_gates_are_named() -> None:
    assert PARITY.forced_past == ("action_max_error 0.31 (allowed <= 0.05)", "min_feature_cosine 0.9 (allowed >= 0.999)")
    assert PARITY.model_copy(update={"forced": False}).forced_past == ()
    rate = {"gripper_flip_rate": 1 / 128, "a": 2.0}
    assert missed(rate, {"gripper_flip_rate": 0.005, "a": 1.0}, num_actions=128) == [
        "gripper_flip_rate 0.0078125, 1 of 128 (allowed <= 0.005)",
        "a 2 (allowed <= 1)",
    ]
    assert missed({"a": math.nan, "min_b": 1.0}, {"a": 1.0, "min_b": 1.0}) == ["a nan (allowed <= 1)"]
