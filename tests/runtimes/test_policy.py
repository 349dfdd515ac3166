import dataclasses
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from rfedge.benchmarks.latency.run import sample_observations
from rfedge.bundle.artifact import load_bundle, write_manifest
from rfedge.contract import policy_contract
from rfedge.errors import ArtifactError, ContractError
from rfedge.messages import Observation, PolicyState, check_action
from rfedge.policies import FOLDER
from rfedge.recurrence import acting_row
from rfedge.runtimes import STAGES, EdgePolicy, RuntimeSettings
from rfedge.runtimes.policy.text import open_encoder
from tests.errors import raises
from tests.runtimes.handmade_bundle import INSTRUCTIONS, Oracle, tiny_config, write_handmade_bundle
from tests.tolerances import assert_same_in_fp32

SETTINGS = RuntimeSettings(threads=1)
NUM_STEPS = 24  # twice the window


def _load(path: Path, **changes: object) -> tuple[EdgePolicy, Oracle]:
    oracle = write_handmade_bundle(path, tiny_config(**changes))
    return EdgePolicy.load(path, settings=SETTINGS), oracle


def _frames(count: int, seed: int = 0) -> list[Observation]:
    return sample_observations(policy_contract(tiny_config()), count, seed=seed)


def _features(policy: EdgePolicy, oracle: Oracle, frames: list[Observation]) -> list[np.ndarray]:
    text = policy.parts.encoder(INSTRUCTIONS[0])
    return [oracle.backbone(f.static[None], f.gripper[None], text.embedding, text.mask)[0] for f in frames]


@pytest.mark.parametrize("time_keeping", ["carry", "window"])
def test_actions_equal_the_numpy_oracle(tmp_path: Path, time_keeping: str) -> None:
    """24 steps: `carry` keeps (h, c), `window` replays the last 12 features from zero, both with 4 stacked actions."""
    policy, oracle = _load(tmp_path / "b", time_keeping=time_keeping, chunk_size=4)
    frames = _frames(NUM_STEPS)
    features = _features(policy, oracle, frames)
    zero = np.zeros((4, 48))
    h, c = zero, zero
    policy.reset(INSTRUCTIONS[0])
    for step, frame in enumerate(frames):
        if time_keeping == "carry":
            pose, gripper, h, c = oracle.head(np.array(features[step : step + 1]), h, c)
        else:
            pose, gripper, h, c = oracle.head(np.array(features[max(0, step - 11) : step + 1]), zero, zero)
        actions = policy.act(frame).actions
        assert actions.shape == (4, 7)
        assert actions.dtype == np.float32
        check_action(actions)
        assert_same_in_fp32(actions[:, :6], pose.reshape(4, 6), oracle.terms)
        np.testing.assert_array_equal(actions[:, 6], np.where(gripper > 0.5, 1.0, -1.0))
    row = acting_row(policy._state)
    assert_same_in_fp32(policy._state.h[:, row], h, oracle.terms)
    assert_same_in_fp32(policy._state.c[:, row], c, oracle.terms)
    assert policy._state.num_steps == NUM_STEPS
    assert policy._state.h.shape[1] == (1 if time_keeping == "carry" else 12)


def test_window_equals_carry_until_the_window_is_full_and_not_after(tmp_path: Path) -> None:
    carry, _ = _load(tmp_path / "carry", time_keeping="carry")
    window, _ = _load(tmp_path / "window", time_keeping="window")
    carry.reset(INSTRUCTIONS[0])
    window.reset(INSTRUCTIONS[0])
    differs = [not np.array_equal(carry.act(frame).actions, window.act(frame).actions) for frame in _frames(NUM_STEPS)]
    assert not any(differs[:12])
    assert any(differs[12:])


def _copy(state: PolicyState) -> PolicyState:
    return dataclasses.replace(
        state, h=state.h.copy(), c=state.c.copy(), history=state.history.copy(), media=state.media.copy()
    )


@pytest.mark.parametrize("time_keeping", ["carry", "window"])
def test_infer_is_pure(tmp_path: Path, time_keeping: str) -> None:
    policy, _ = _load(tmp_path / "b", time_keeping=time_keeping)
    state = policy.initial_state()
    for frame in _frames(14):
        before = _copy(state)
        first = policy.infer(frame, INSTRUCTIONS[0], state)
        policy.infer(_frames(1, seed=9)[0], INSTRUCTIONS[1], first.state)  # another client in between
        second = policy.infer(frame, INSTRUCTIONS[0], state)
        np.testing.assert_array_equal(first.actions, second.actions)
        for name in ("h", "c", "history"):
            np.testing.assert_array_equal(getattr(state, name), getattr(before, name))
            np.testing.assert_array_equal(getattr(first.state, name), getattr(second.state, name))
        state = first.state


def test_act_after_reset_is_a_fresh_policy(tmp_path: Path) -> None:
    policy, _ = _load(tmp_path / "b")
    frames = _frames(15)
    policy.reset(INSTRUCTIONS[0])
    first = [policy.act(frame).actions for frame in frames]
    continued = policy.act(frames[0]).actions
    policy.reset(INSTRUCTIONS[0])
    again = [policy.act(frame).actions for frame in frames]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(continued, first[0]), "without a reset the state is kept"
    policy.reset(INSTRUCTIONS[2])
    assert not np.array_equal(policy.act(frames[0]).actions, first[0]), "the instruction reaches the actions"


def test_every_stage_is_timed(tmp_path: Path) -> None:
    policy, _ = _load(tmp_path / "b")
    policy.reset(INSTRUCTIONS[0])
    timings_ms = policy.act(_frames(1)[0]).timings_ms
    assert tuple(timings_ms) == STAGES
    assert all(duration_ms >= 0 for duration_ms in timings_ms.values())
    parts = sum(timings_ms[stage] for stage in STAGES if stage != "total")
    assert timings_ms["total"] == pytest.approx(parts)


def test_bad_observations_are_one_clear_line_and_leave_the_state(tmp_path: Path) -> None:
    policy, _ = _load(tmp_path / "b")
    (frame,) = _frames(1)
    with raises(ContractError, "policy", got="act() without an instruction", expected="reset(instruction) first"):
        policy.act(frame)
    policy.reset(INSTRUCTIONS[0])
    policy.act(frame)
    state = policy._state
    nan_image = np.full((200, 200, 3), np.nan)
    for subject, got, observation in (
        ("images.static", "NaN or Inf pixels", Observation(static=nan_image, gripper=frame.gripper)),  # type: ignore[arg-type]
        ("state", "NaN or Inf", Observation(static=frame.static, gripper=frame.gripper, state=np.full(15, np.inf))),
    ):
        with raises(ContractError, f"observation.{subject}", got=got):
            policy.act(observation)
        assert policy._state is state


@pytest.mark.parametrize(("stage", "name"), [("backbone", "feature"), ("head", "pose")])
def test_nan_from_a_graph_names_the_stage_and_leaves_the_state(tmp_path: Path, stage: str, name: str) -> None:
    write_handmade_bundle(tmp_path / "b", poison=stage)
    policy = EdgePolicy.load(tmp_path / "b", settings=SETTINGS)
    policy.reset(INSTRUCTIONS[0])
    state = policy._state
    with raises(ContractError, f"{stage} output '{name}'", got="NaN or Inf", expected="finite values"):
        policy.act(_frames(1)[0])
    assert policy._state is state


def test_a_refused_instruction_leaves_the_policy_as_it_was(tmp_path: Path) -> None:
    policy, _ = _load(tmp_path / "b")
    policy.reset(INSTRUCTIONS[0])
    policy.act(_frames(1)[0])
    state = policy._state
    with raises(ContractError, "instruction", got="empty text"):
        policy.reset("  ")
    with raises(ContractError, got="...tokens", expected="at most 16"):
        policy.reset("zebra quickly jumps over xylophones " * 9)
    assert policy._state is state


def test_instructions_are_embedded_once(tmp_path: Path) -> None:
    policy, oracle = _load(tmp_path / "b")
    first, second = policy.parts.encoder(INSTRUCTIONS[0]), policy.parts.encoder(INSTRUCTIONS[0])
    assert first is second
    assert not first.embedding.flags.writeable
    ids, mask = policy.parts.encoder._tokenizer.encode(INSTRUCTIONS[0])
    np.testing.assert_array_equal(first.embedding[0], oracle.embedding[ids[mask]])
    np.testing.assert_array_equal(first.mask[0], mask[mask])


@pytest.mark.parametrize("name", ["backbone.onnx", "head.onnx", "embedding.safetensors", "tokenizer.json"])
def test_an_altered_byte_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write_handmade_bundle(tmp_path / "b")
    file = tmp_path / "b" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with raises(ArtifactError, f"bundle file {name}", got="sha256 ..."):
        EdgePolicy.load(tmp_path / "b")


def test_steps_allocate_no_image_and_do_not_grow(tmp_path: Path) -> None:
    policy, _ = _load(tmp_path / "b")
    frames = _frames(4)
    policy.reset(INSTRUCTIONS[0])
    for step in range(30):
        policy.act(frames[step % 4])
    tracemalloc.start()
    try:
        policy.act(frames[0])
        tracemalloc.reset_peak()
        start_bytes, _ = tracemalloc.get_traced_memory()
        for step in range(200):
            policy.act(frames[step % 4])
        end_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert end_bytes - start_bytes < 4_000
    assert peak_bytes - start_bytes < 32_000, "the static image has 120000 bytes"


def test_torch_runs_the_same_contract(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from rfedge.language.tokenizer import InstructionTokenizer
    from rfedge.model import build_policy, save_checkpoint

    config = tiny_config(chunk_size=2)
    tokenizer = InstructionTokenizer.from_corpus(INSTRUCTIONS, vocab_size=400, text_length=16)
    save_checkpoint(tmp_path / "c", build_policy(config, seed=0), tokenizer, {})
    with EdgePolicy.load(tmp_path / "c", backend="torch", settings=SETTINGS) as policy:
        policy.reset(INSTRUCTIONS[0])
        first = [policy.act(frame).actions for frame in _frames(14)]
        policy.reset(INSTRUCTIONS[0])
        again = [policy.act(frame).actions for frame in _frames(14)]
        assert policy.parts.precision == "fp32"
        assert policy.parts.size_bytes > 0
    assert first[0].shape == (2, 7)
    check_action(np.concatenate(first))
    np.testing.assert_array_equal(first, again)
    with raises(ArtifactError, "checkpoint..."):
        EdgePolicy.load(tmp_path / "none", backend="torch")


def test_a_manifest_that_is_not_of_its_graphs_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "b"
    write_handmade_bundle(path, tiny_config(time_keeping="carry", chunk_size=4))
    manifest = load_bundle(path).manifest
    for config in (tiny_config(time_keeping="window", chunk_size=4), tiny_config(time_keeping="carry", chunk_size=8)):
        write_manifest(path, manifest.model_copy(update={"policy": config}))
        with raises(ArtifactError, got="...contract: got another one than the policy's sizes make"):
            EdgePolicy.load(path)
        write_manifest(path, manifest.model_copy(update={"policy": config, "contract": policy_contract(config)}))
        with raises(ArtifactError, "graph head.onnx, ...", got="shape ...", expected="..., as the manifest says"):
            EdgePolicy.load(path)


def test_words_that_the_policy_hardly_knows_are_named(caplog: pytest.LogCaptureFixture) -> None:
    encoder = open_encoder(load_bundle(FOLDER / "playtable-jump-step" / "bundle"))
    encoder("push the red block to the right")
    assert not caplog.records
    encoder("florb the red grunk")
    assert "hardly knows 'florb', 'grunk'" in caplog.text
