"""Every head, fusion and memory: stepping a robot frame by frame is what was trained on windows."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from rfedge.config import GPTHeadConfig, MLPHeadConfig, PolicyConfig, head_of_kind, preset
from rfedge.contract import policy_contract
from rfedge.errors import ConfigError
from rfedge.model import RoboFlamingo, build_policy
from rfedge.recurrence import Arrays, advance, initial_state, observe
from tests.errors import raises
from tests.model.family import CHANGES, member
from tests.tolerances import assert_same_in_fp32, backbone_terms, head_terms, policy_terms
from tests.whole_windows import forward_window


def graph(module: torch.nn.Module, names: list[str]) -> Callable[[Arrays], Arrays]:
    def call(inputs: Arrays) -> Arrays:
        outputs = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}

    return call


def frames(config: PolicyConfig, count: int) -> list[dict[str, np.ndarray]]:
    """Return inputs of `count` frames under one instruction, without older frames."""
    rng = np.random.default_rng(0)
    contract = policy_contract(config).backbone
    own = [spec for spec in contract.inputs if not spec.name.startswith("media")]
    sequence = [{spec.name: spec.sample(rng) for spec in own} for _ in range(count)]
    return [{**inputs, "text_embedding": sequence[0]["text_embedding"]} for inputs in sequence]


@torch.inference_mode()
def stepped(policy: RoboFlamingo, sequence: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return pose (S, K, 6) and gripper probability (S, K), one frame a call."""
    config, contract = policy.config, policy_contract(policy.config)
    backbone = graph(policy.backbone, [spec.name for spec in contract.backbone.outputs])
    head = graph(policy.head, [spec.name for spec in contract.head.outputs])
    state, poses, grippers = initial_state(config), [], []
    for inputs in sequence:
        feature, state = observe(config, backbone, inputs, state)
        pose, gripper, state = advance(config, head, feature, state)
        poses.append(pose)
        grippers.append(gripper)
    assert state.num_steps == len(sequence)
    assert len(state.media) == min(len(sequence), config.media_frames - 1)
    return np.stack(poses), np.stack(grippers)


@torch.inference_mode()
def unrolled(policy: RoboFlamingo, sequence: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the same from the path that training takes."""

    def window(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([inputs[name] for inputs in sequence]))[None]

    ids = torch.zeros(1, policy.config.decoder.text_length, dtype=torch.int64)
    text = torch.from_numpy(sequence[0]["text_embedding"])
    policy.embed_text = lambda token_ids: text  # type: ignore[method-assign]
    state = window("robot_state") if policy.config.proprioception else None
    mask = torch.ones_like(ids, dtype=torch.bool)
    pose, logit = forward_window(policy, window("image_static"), window("image_gripper"), ids, mask, state)
    return pose[0].numpy(), torch.sigmoid(logit[0]).numpy()


@pytest.mark.parametrize("name", CHANGES)
def test_stepping_equals_the_window_it_was_trained_on(name: str) -> None:
    config = member(name)
    policy = build_policy(config, seed=0).eval()
    sequence = frames(config, config.window)
    for one, other in zip(stepped(policy, sequence), unrolled(policy, sequence), strict=True):
        assert_same_in_fp32(one, other, policy_terms(config))


@pytest.mark.parametrize(
    ("name", "remembered"), [("gpt", 5), ("mlp", 1), ("mlp-with-history", 3), ("mlp-with-history-pre", 4), ("pre", 5)]
)
def test_how_far_back_an_action_remembers(name: str, remembered: int) -> None:
    """A change of a frame reaches the action while the frame is among the last `remembered`, and not a step longer."""
    config = member(name)
    policy = build_policy(config, seed=0).eval()
    sequence = frames(config, 8)
    for age in range(7):
        changed = [dict(inputs) for inputs in sequence]
        changed[7 - age]["image_static"] = 255 - changed[7 - age]["image_static"]
        same = np.array_equal(stepped(policy, changed)[0][7], stepped(policy, sequence)[0][7])
        assert same == (age >= remembered), f"age {age}"


def test_the_order_of_older_frames_matters() -> None:
    config = member("mlp-with-history")
    policy = build_policy(config, seed=0).eval()
    sequence = frames(config, 3)
    swapped = [sequence[1], sequence[0], sequence[2]]
    assert np.abs(stepped(policy, swapped)[0][2] - stepped(policy, sequence)[0][2]).max() > 1e-6


def test_an_absent_frame_says_nothing() -> None:
    """What stands in the places of frames that were never seen must not matter."""
    config = member("mlp-with-history")
    policy = build_policy(config, seed=0).eval()
    inputs = policy_contract(config).backbone.sample_inputs(np.random.default_rng(0))
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    tensors["media_mask"][0, 0] = False
    with torch.inference_mode():
        feature, _ = policy.backbone(**tensors)
        tensors["media_history"][0, 0] = 1e3
        assert torch.equal(policy.backbone(**tensors)[0], feature)
        tensors["media_history"][0, 1] += 1.0
        assert not torch.equal(policy.backbone(**tensors)[0], feature)


def test_two_way_features_are_those_of_each_camera_alone() -> None:
    config = member("two-way")
    policy = build_policy(config, seed=0).eval()
    inputs = {name: torch.from_numpy(array) for name, array in frames(config, 1)[0].items()}
    width = config.decoder.width
    with torch.inference_mode():
        feature = policy.backbone(**inputs)
        inputs["image_gripper"] = 255 - inputs["image_gripper"]
        other = policy.backbone(**inputs)
    assert feature.shape == (1, 2 * width)
    assert_same_in_fp32(feature[:, :width], other[:, :width], backbone_terms(config))
    assert (feature[:, width:] - other[:, width:]).abs().max() > 1e-3


@pytest.mark.parametrize(("place", "reaches"), [(0, True), (5, True), (14, True), (6, False), (9, False)])
def test_proprioception_is_the_arms_pose_and_the_last_gripper_command(place: int, reaches: bool) -> None:
    config = member("proprioception")
    policy = build_policy(config, seed=0).eval()
    inputs = {name: torch.from_numpy(array) for name, array in frames(config, 1)[0].items()}
    inputs["robot_state"][0, 14] = -1.0
    with torch.inference_mode():
        feature = policy.backbone(**inputs)
        inputs["robot_state"][0, place] += 2.0
        assert torch.equal(policy.backbone(**inputs), feature) != reaches


@pytest.mark.parametrize("name", ["gpt", "mlp", "two-way-gpt-chunks"])
def test_standardised_input_is_the_same_head_on_standardised_features(name: str) -> None:
    config = member(name)
    heads = [build_policy(config, seed=0).head.eval() for _ in range(2)]
    features = 5.0 + 3.0 * torch.randn(4, 5, config.feature_size, generator=torch.Generator().manual_seed(0))
    mean, deviation = features.mean((0, 1)), features.std((0, 1))
    heads[1].standardise_input(mean, deviation)
    with torch.inference_mode():
        expected, _ = heads[0].unroll((features - mean) / deviation)
        assert_same_in_fp32(heads[1].unroll(features)[0], expected, head_terms(config))
        assert not torch.allclose(heads[0].unroll(features)[0], expected, atol=1e-3)


def test_heads_of_the_released_size() -> None:
    """The original's defaults: GPT-2 of 8 layers, 768 wide; an MLP d -> d / 2 -> 1024."""
    head = preset("M-3B").head
    assert head_of_kind("gpt", head) == GPTHeadConfig(kind="gpt", width=768, layers=8, heads=8)
    assert head_of_kind("mlp", head) == MLPHeadConfig(kind="mlp", hidden_size=1024)
    assert head_of_kind("lstm", head) is head
    with raises(ConfigError, "head", got="'lstn'", expected="one of lstm, gpt, mlp (did you mean 'lstm'?)"):
        head_of_kind("lstn", head)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"media_frames": 3, "fusion": "two_way"}, "expected 'post' or 'pre' with media_frames above 1"),
        ({"media_frames": 13}, r"media_frames: got 13, expected at most the window \(12\)"),
        ({"head": {"kind": "gpt"}, "time_keeping": "carry"}, "a GPT head has no state to carry"),
        ({"head": {"kind": "gpt", "width": 100}}, r"width: got 100, expected a multiple of heads \(8\)"),
    ],
)
def test_members_that_cannot_be(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PolicyConfig.model_validate({**preset("tiny").model_dump(), **changes})


def test_what_stands_before_the_image_reads_no_camera() -> None:
    """As in Flamingo; only what it says to later tokens through the text's own attention could carry a camera on."""
    base = preset("tiny")
    decoder = base.decoder.model_copy(update={"tokens_before_image": 1})
    policy = build_policy(base.model_copy(update={"decoder": decoder}), seed=0).eval()
    inputs = {name: torch.from_numpy(array) for name, array in frames(base, 1)[0].items()}
    first_only = {**inputs, "text_mask": torch.zeros_like(inputs["text_mask"])}
    first_only["text_mask"][:, 0] = True
    with torch.inference_mode():
        seen, seen_first = policy.backbone(**inputs), policy.backbone(**first_only)
        for part in (inputs, first_only):
            part["image_static"] = 255 - part["image_static"]
        assert torch.equal(policy.backbone(**first_only), seen_first)
        assert not torch.allclose(policy.backbone(**inputs), seen, atol=1e-3)
