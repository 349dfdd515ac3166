"""Merge alike tokens of a vision transformer, layer by layer, so that later layers compute fewer.

Bipartite soft matching: every second token may receive, the others are sent to the receiver whose keys are most alike, and
the most alike of them are merged, as the mean of the patches that they stand for. Attention then counts a token as often as
it has patches. The class token is neither sent nor receives. No weight changes; nothing here is trained.
Source: Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

# N = images, L = tokens with the class token first, D = width, S = tokens that may be sent, R = merged tokens, K = receivers


def size_bias(size_NL1: torch.Tensor) -> torch.Tensor:
    """Return what is added to the scores of tokens that stand for `size` patches, (N, 1, 1, L)."""
    return size_NL1.log()[:, None].transpose(2, 3)


def merge_tokens(
    x_NLD: torch.Tensor, size_NL1: torch.Tensor | None, keys_NLC: torch.Tensor, num_merged: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge `num_merged` tokens of each image, at most half of the patches, into those whose keys point most alike.

    `size_NL1` are the patches that each token stands for; None for one each. Returns tokens and sizes, (N, L - R, D) and
    (N, L - R, 1): the class token, tokens left by themselves, receivers.
    """
    direction = keys_NLC / (keys_NLC * keys_NLC).sum(dim=-1, keepdim=True).sqrt()
    alike_NSK = direction[:, 1::2] @ direction[:, 2::2].transpose(1, 2)
    best, receiver = alike_NSK.topk(1, dim=-1)
    order = best[..., 0].topk(best.shape[1], dim=-1).indices
    # Rows of all images below each other: to gather whole rows is one copy each.
    images = torch.arange(x_NLD.shape[0], device=x_NLD.device)[:, None]
    order = order + images * best.shape[1]
    merged_NR, left = order[:, :num_merged], order[:, num_merged:]

    size = torch.ones_like(x_NLD[..., :1]) if size_NL1 is None else size_NL1
    sums = torch.cat([x_NLD * size, size], dim=-1)
    senders, receivers = sums[:, 1::2].flatten(0, 1), sums[:, 2::2]
    to_NR = F.embedding(merged_NR, receiver.flatten(0, 1))[..., 0]
    sent_NKR = (torch.arange(receivers.shape[1], device=x_NLD.device)[:, None] == to_NR[:, None]).to(sums.dtype)
    receivers = receivers + sent_NKR @ F.embedding(merged_NR, senders)
    sums = torch.cat([sums[:, :1], F.embedding(left, senders), receivers], dim=1)
    x, size = sums[..., :-1], sums[..., -1:]
    return x / size, size
