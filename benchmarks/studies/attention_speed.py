"""What PyTorch's fused attention costs a pre-training step in bf16 on a CPU.

    python -m rfedge.benchmarks.studies.attention_speed

Whole steps of playtable-small on frames and texts sampled from a seed, with plain MatMuls and with the fused attention in
turn, in one process; the fused one against itself is the noise floor.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import numpy.typing as npt

from rfedge.records.statistics import ratio_of_medians

__all__ = ["measure_attention"]

_NUM_FRAMES = 32
_NUM_TOKENS = 31
_NUM_NUMBERS = 200
_WAYS = ("fused", "fused again", "plain")


def measure_attention(rounds: int, *, seed: int = 0) -> dict[str, npt.NDArray[np.float64]]:
    """Return milliseconds (rounds,) of a step for each of `fused`, `fused again` and `plain`."""
    import torch

    from rfedge.config import preset
    from rfedge.model import build_policy
    from rfedge.train.batches.image_text import NO_LABEL
    from rfedge.train.pretraining.scene_batches import SceneBatch, encode_images, scene_score
    from rfedge.train.settings import plain_attention

    config = preset("playtable-small")
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, config.decoder.vocab_size, (2 * _NUM_FRAMES, _NUM_TOKENS))
    said = rng.random(ids.shape) < 0.5
    batch = SceneBatch(
        torch.from_numpy(rng.integers(0, 256, (_NUM_FRAMES, 200, 200, 3), np.uint8)),
        torch.from_numpy(rng.integers(0, 256, (_NUM_FRAMES, 84, 84, 3), np.uint8)),
        torch.from_numpy(ids),
        torch.from_numpy(np.where(said, ids, NO_LABEL)),
        *(torch.zeros(_NUM_FRAMES, *shape) for shape in ((4, 3), (3, 2), (4, 2), (3, 2))),
    )
    policy = build_policy(config, seed)
    optimizer = torch.optim.AdamW(policy.parameters(), fused=True)
    numbers = torch.arange(_NUM_NUMBERS)
    taken: dict[str, list[float]] = {way: [] for way in _WAYS}
    for turn in range(rounds + 1):
        for way in _WAYS:
            begun_s = time.perf_counter()
            with plain_attention(when=way == "plain"), torch.autocast("cpu", torch.bfloat16):
                score = scene_score(policy, batch, encode_images(policy, batch), numbers)
                optimizer.zero_grad(set_to_none=True)
                score.loss.backward()
                optimizer.step()
            if turn:  # the first one warms up
                taken[way].append(1000.0 * (time.perf_counter() - begun_s))
    return {way: np.array(samples) for way, samples in taken.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    taken = measure_attention(parser.parse_args().rounds)
    for way, samples in taken.items():
        ratio = ratio_of_medians(samples, taken["fused"], seed=0)
        sys.stdout.write(
            f"{way:<12}{np.median(samples):7.1f} ms a step, {ratio.value:.3f} of fused [{ratio.low:.3f}, {ratio.high:.3f}]\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
