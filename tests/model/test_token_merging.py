"""Token merging against the paper's algorithm written in loops, and against no merging where it must change nothing."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rfedge.config import preset
from rfedge.model import build_policy
from rfedge.model.token_merging import merge_tokens, size_bias
from tests.tolerances import assert_same_in_fp32, backbone_terms

Array = npt.NDArray[np.float64]


def merged_in_loops(tokens: Array, counts: Array, keys: Array, num_merged: int) -> tuple[Array, Array]:
    """Bolya et al., ICLR 2023, section 3: the class token apart, every second token is sent to its nearest receiver."""
    senders, receivers = list(range(1, len(tokens), 2)), list(range(2, len(tokens), 2))
    directions = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    nearest = {sender: max(receivers, key=lambda item: directions[sender] @ directions[item]) for sender in senders}
    senders.sort(key=lambda item: -directions[item] @ directions[nearest[item]])
    groups = {item: [item] for item in (0, *senders[num_merged:], *receivers)}
    for sender in senders[:num_merged]:
        groups[nearest[sender]].append(sender)
    sizes = np.array([counts[members].sum() for members in groups.values()])
    means = [(tokens[members] * counts[members, None]).sum(axis=0) for members in groups.values()]
    return np.array(means) / sizes[:, None], sizes


@pytest.mark.parametrize("num_tokens", [6, 17, 18])
@pytest.mark.parametrize("first", [True, False])
def test_merging_is_the_papers(num_tokens: int, first: bool) -> None:
    rng = np.random.default_rng(num_tokens)
    x = rng.standard_normal((2, num_tokens, 5))
    keys = rng.standard_normal((2, num_tokens, 3))
    sizes = np.ones((2, num_tokens)) if first else rng.integers(1, 5, (2, num_tokens)).astype(np.float64)
    given = None if first else torch.from_numpy(sizes)[..., None]
    merged, counts = merge_tokens(torch.from_numpy(x), given, torch.from_numpy(keys), 2)
    assert merged.shape == (2, num_tokens - 2, 5)
    for image in range(2):
        expected, expected_sizes = merged_in_loops(x[image], sizes[image], keys[image], 2)
        np.testing.assert_allclose(merged[image].numpy(), expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(counts[image, :, 0].numpy(), expected_sizes)


def test_a_token_of_three_patches_is_read_as_three_tokens() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (torch.from_numpy(rng.standard_normal((1, 1, 4, 8))) for _ in range(3))
    apart = torch.nn.functional.scaled_dot_product_attention(q, *(part[:, :, [0, 1, 1, 1, 2, 3]] for part in (k, v)))
    bias = size_bias(torch.tensor([1.0, 3.0, 1.0, 1.0], dtype=torch.float64).view(1, 4, 1))
    together = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    np.testing.assert_allclose(together.numpy(), apart.numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    "changes",
    [{}, {"fusion": "pre"}, {"resampler": preset("tiny").resampler.model_copy(update={"per_camera": True})}],
    ids=["shared", "joined", "per camera"],
)
def test_merging_equal_patches_changes_no_latent(changes: dict[str, object]) -> None:
    """On an even picture, without positions, all patches are equal: their mean is each of them."""
    config = preset("tiny").model_copy(update=changes)
    backbone = build_policy(config, seed=0).backbone.eval()
    torch.nn.init.zeros_(backbone.vision.positional_embedding)
    images = [torch.full((1, size, size, 3), grey, dtype=torch.uint8) for size, grey in ((200, 60), (84, 180))]
    with torch.inference_mode():
        expected = backbone.observe(*images)
        backbone.vision.merge_tokens = 5
        tokens, sizes = backbone.vision(torch.zeros(2, 3, config.vision.image_size, config.vision.image_size))
        actual = backbone.observe(*images)
    left = config.vision.num_patches - 5 * config.vision.layers
    assert tokens.shape == (2, left, config.vision.width)
    np.testing.assert_array_equal(sizes.sum(dim=1).numpy(), config.vision.num_patches)
    assert_same_in_fp32(actual, expected, backbone_terms(config))
