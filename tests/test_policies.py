"""The shipped policies are small, int8, trained for their loop, and described by what was measured."""

import json
from pathlib import Path

import numpy as np
import pytest

from rfedge.bundle import hash_file, load_bundle
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
    assert (stride == 1 < chunk) if name == CLOSED_LOOP else (stride == chunk >= 4)
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
    record = json.loads(tool.RECORD.read_text())
    assert path.with_name(tool.CARD).read_text() == tool.render_card(name, load_bundle(path), record), (
        f"run python tools/ship_policy.py {name}"
    )
    measured = {policy["label"]: policy["manifest_sha256"] for policy in record["success"]["policies"]}
    assert measured[tool.LABELS[name]] == hash_file(path / "manifest.json"), "the record is of another bundle"


def test_a_name_is_a_policy_and_a_folder_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_bundle(tmp_path) == tmp_path
    assert default_bundle("jump-step") == find_bundle(Path(JUMP_STEP))
    for mode in ("closed-loop", "open-loop", "overlapped"):
        assert default_bundle(mode) == find_bundle(Path(CLOSED_LOOP))
    monkeypatch.chdir(tmp_path)
    Path(JUMP_STEP).mkdir()
    assert find_bundle(Path(JUMP_STEP)) == Path(JUMP_STEP), "what lies here goes first"
