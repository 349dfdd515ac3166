"""The shipped policies are small, int8, trained for their loop, and described by what was measured."""

import json
from pathlib import Path

import numpy as np
import pytest

from rfedge.benchmarks.latency.run import LatencyPlan, run_latency
from rfedge.benchmarks.success.plan import SuccessPlan
from rfedge.benchmarks.success.run import run_success
from rfedge.bundle.artifact import hash_file, load_bundle
from rfedge.errors import ArtifactError
from rfedge.messages import Observation
from rfedge.policies import CLOSED_LOOP, JUMP_STEP, SHIPPED, default_bundle, find_bundle
from rfedge.runtimes import EdgePolicy
from tests.tool_modules import load_tool


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_policy_runs(name: str) -> None:
    bundle = load_bundle(find_bundle(Path(name)))
    assert bundle.size_bytes <= 15_000_000
    assert bundle.manifest.precision.requested == "int8"
    assert bundle.manifest.parity.passed
    assert not bundle.manifest.parity.forced
    assert bundle.manifest.scenes
    stride, chunk = bundle.policy.frame_stride, bundle.policy.chunk_size
    assert (stride == 1 < chunk) if name == CLOSED_LOOP else (chunk >= stride >= 4)
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    robot_state = np.zeros(15, np.float32) if bundle.policy.proprioception else None
    with EdgePolicy.load(bundle.root) as policy:
        result = policy.infer(
            Observation(image, image[:84, :84].copy(), robot_state), "pull the drawer open", policy.initial_state()
        )
    assert result.actions.shape == (chunk, 7)
    assert np.isfinite(result.actions).all()


@pytest.mark.parametrize("name", SHIPPED)
def test_its_card_says_what_the_committed_record_does(name: str) -> None:
    tool = load_tool("ship_policy")
    path = find_bundle(Path(name))
    bundle = load_bundle(path)
    assert path.with_name(tool.CARD).read_text() == tool.render_card(name, bundle, tool.stored(name)), (
        f"run python tools/ship_policy.py {name}"
    )
    documents = (json.loads(file.read_text()) for file in tool.RESULTS.glob("success_*.json"))
    policies = [policy for document in documents for policy in document["policies"] if policy["path"] == name]
    measured = {policy["manifest_sha256"] for policy in policies}
    assert measured <= {hash_file(path / "manifest.json")}, "a record is of another bundle"


def test_records_name_a_shipped_policy_not_where_it_is_installed() -> None:
    shipped = tuple(find_bundle(Path(name)) for name in SHIPPED)
    plan = SuccessPlan(shipped, execute_steps=(4,), max_steps=4, starts_per_task=1, tasks=("open_drawer",))
    success = run_success(plan, [])
    assert [(policy.label, policy.path) for policy in success.policies] == [(f"int8-{name}", name) for name in SHIPPED]
    latency = run_latency(LatencyPlan(shipped, warmup=1, iterations=2))
    assert [(variant.name, variant.source) for variant in latency.variants[:2]] == [
        ("int8", SHIPPED[0]),
        (f"int8 ({SHIPPED[1]})", SHIPPED[1]),
    ]


def test_a_name_is_a_policy_and_a_folder_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_bundle(tmp_path) == tmp_path
    assert default_bundle("jump-step") == find_bundle(Path(JUMP_STEP))
    for mode in ("closed-loop", "open-loop", "overlapped"):
        assert default_bundle(mode) == find_bundle(Path(CLOSED_LOOP))
    monkeypatch.chdir(tmp_path)
    Path(JUMP_STEP).mkdir()
    assert find_bundle(Path(JUMP_STEP)) == Path(JUMP_STEP), "what lies here goes first"
    with pytest.raises(ArtifactError) as raised:
        find_bundle(Path("playtable-jmp-step"))
    assert raised.value.remedy == f"Did you mean {JUMP_STEP}?"
