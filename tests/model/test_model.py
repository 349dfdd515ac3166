import numpy as np
import pytest
import torch
from PIL import Image

from rfedge.config import LSTMHeadConfig, PolicyConfig, preset
from rfedge.contract import policy_contract
from rfedge.model import RoboFlamingo, build_policy
from rfedge.model.decoder import alibi_bias
from rfedge.model.vision import BicubicResize
from tests.tolerances import assert_same_in_fp32, backbone_terms, head_terms, policy_terms
from tests.whole_windows import forward_window


@pytest.fixture(scope="module")
def policy() -> RoboFlamingo:
    return build_policy(preset("tiny"), seed=0).eval()


def backbone_inputs(config: PolicyConfig, seed: int) -> dict[str, torch.Tensor]:
    arrays = policy_contract(config).backbone.sample_inputs(np.random.default_rng(seed))
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize(("name", "limit"), [("tiny", 1_000_000), ("playtable-small", 20_000_000)])
def test_presets_stay_within_their_size(name: str, limit: int) -> None:
    with torch.device("meta"):
        policy = RoboFlamingo(preset(name))
    assert sum(parameter.numel() for parameter in policy.parameters()) < limit


def test_the_real_3b_has_the_parameters_its_authors_log() -> None:
    with torch.device("meta"):
        groups = RoboFlamingo(preset("M-3B")).parameter_groups()
    counts = {name: sum(parameter.numel() for _, parameter in group) for name, group in groups.items()}
    assert counts["resampler"] == 63_019_008
    assert counts["cross_attention"] == 24 * 36_708_354
    assert counts["embedding"] == 50280 * 2048
    assert counts["head"] == 41_194_759
    assert counts["resampler"] + counts["cross_attention"] + counts["embedding"] + counts["head"] == 1_088_187_703


def test_parameter_groups_are_disjoint_and_complete(policy: RoboFlamingo) -> None:
    grouped = [name for group in policy.parameter_groups().values() for name, _ in group]
    assert sorted(grouped) == sorted(name for name, _ in policy.named_parameters())


def test_building_is_seeded_and_leaves_the_callers_randomness_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (build_policy(preset("tiny"), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.head.rnn.weight_ih_l0, same.head.rnn.weight_ih_l0)
    assert not torch.equal(one.head.rnn.weight_ih_l0, other.head.rnn.weight_ih_l0)


@pytest.mark.parametrize(("size_in", "size_out"), [(200, 224), (84, 224), (200, 128), (84, 32)])
def test_resize_gives_pillows_bytes(size_in: int, size_out: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (size_in, size_in, 3), np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((size_out, size_out), Image.Resampling.BICUBIC)).astype(np.float32)
    actual = BicubicResize(size_in, size_out)(torch.from_numpy(image)[None])[0].permute(1, 2, 0).numpy()
    difference = np.abs(actual - expected)
    # Pillow sums in fixed point: a tie may fall the other way, by one, in a handful of pixels
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_padding_never_reaches_the_feature(policy: RoboFlamingo) -> None:
    inputs = backbone_inputs(policy.config, seed=0)
    inputs["text_mask"][:, 9:] = False
    with torch.inference_mode():
        feature = policy.backbone(**inputs)
        inputs["text_embedding"][:, 9:] = 1e3
        assert torch.equal(policy.backbone(**inputs), feature)
        short = {**inputs, "text_embedding": inputs["text_embedding"][:, :9], "text_mask": inputs["text_mask"][:, :9]}
        assert_same_in_fp32(policy.backbone(**short), feature, backbone_terms(policy.config))
        inputs["text_embedding"][:, 8] *= -1.0
        assert not torch.allclose(policy.backbone(**inputs), feature, atol=1e-3)


@pytest.mark.parametrize("camera", ["image_static", "image_gripper"])
def test_both_cameras_reach_the_feature(policy: RoboFlamingo, camera: str) -> None:
    inputs = backbone_inputs(policy.config, seed=0)
    with torch.inference_mode():
        feature = policy.backbone(**inputs)
        inputs[camera] = 255 - inputs[camera]
        assert (policy.backbone(**inputs) - feature).abs().max() > 1e-3


def test_closed_gates_hide_the_cameras() -> None:
    """tanh(0) = 0: a pre-trained decoder starts undisturbed."""
    config = preset("tiny")
    config = config.model_copy(update={"decoder": config.decoder.model_copy(update={"gate_init": 0.0})})
    policy = build_policy(config, seed=0).eval()
    inputs = backbone_inputs(config, seed=0)
    with torch.inference_mode():
        feature = policy.backbone(**inputs)
        inputs["image_static"] = 255 - inputs["image_static"]
        assert torch.equal(policy.backbone(**inputs), feature)


def test_the_last_block_of_the_3b_layout_is_dead() -> None:
    config = preset("tiny")
    config = config.model_copy(update={"decoder": config.decoder.model_copy(update={"feature": "last_block_input"})})
    policy = build_policy(config, seed=0)
    policy.backbone(**backbone_inputs(config, seed=0)).sum().backward()
    dead = {name for name, parameter in policy.backbone.decoder.named_parameters() if parameter.grad is None}
    assert dead == {
        name for name, _ in policy.backbone.decoder.named_parameters() if name.startswith(("layers.1.", "ln_f."))
    }


def test_unroll_equals_stepping_with_carried_state(policy: RoboFlamingo) -> None:
    features = torch.randn(1, 7, policy.config.feature_size, generator=torch.Generator().manual_seed(0))
    assert isinstance(policy.config.head, LSTMHeadConfig)
    h = c = torch.zeros(policy.config.head.layers, 1, policy.config.head.hidden_size)
    with torch.inference_mode():
        poses, logits = policy.head.unroll(features)
        for step in range(7):
            pose, gripper, h, c = policy.head(features[:, step : step + 1], h, c)
            assert_same_in_fp32(pose, poses[:, step], head_terms(policy.config))
            assert_same_in_fp32(gripper, torch.sigmoid(logits[:, step]), head_terms(policy.config))


def test_forward_window_equals_frame_by_frame(policy: RoboFlamingo) -> None:
    rng = np.random.default_rng(0)
    static = torch.from_numpy(rng.integers(0, 256, (2, 3, 200, 200, 3), np.uint8))
    gripper = torch.from_numpy(rng.integers(0, 256, (2, 3, 84, 84, 3), np.uint8))
    ids = torch.from_numpy(rng.integers(0, 100, (2, policy.config.decoder.text_length)))
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.inference_mode():
        pose, logit = forward_window(policy, static, gripper, ids, mask)
        features = torch.stack(
            [policy.backbone(static[:, step], gripper[:, step], policy.embed_text(ids), mask) for step in range(3)], dim=1
        )
        assert pose.shape == (2, 3, 1, 6)
        assert logit.shape == (2, 3, 1)
        assert_same_in_fp32(pose, policy.head.unroll(features)[0], policy_terms(policy.config))


def test_alibi_prefers_near_keys_and_hides_the_future() -> None:
    bias = alibi_bias(heads=4, length=5, bias_max=8.0)
    assert torch.isinf(bias[:, 0, 1:]).all()
    assert bias[0, 3, 3] == 0
    assert bias[0, 3, 1] == -2 * 2.0**-2
    assert alibi_bias(heads=3, length=2, bias_max=8.0)[:, 1, 0].tolist() == [-(2.0**-4), -(2.0**-8), -(2.0**-2)]


def test_standardised_input_is_the_same_head_on_standardised_features() -> None:
    heads = [build_policy(preset("tiny"), seed=0).head.eval() for _ in range(2)]
    features = 5.0 + 3.0 * torch.randn(4, 6, preset("tiny").feature_size, generator=torch.Generator().manual_seed(0))
    mean, deviation = features.mean((0, 1)), features.std((0, 1))
    heads[1].standardise_input(mean, deviation)
    with torch.inference_mode():
        expected, _ = heads[0].unroll((features - mean) / deviation)
        actual, _ = heads[1].unroll(features)
    assert_same_in_fp32(actual, expected, head_terms(preset("tiny")))
    assert not torch.allclose(heads[0].unroll(features)[0], expected, atol=1e-3)
