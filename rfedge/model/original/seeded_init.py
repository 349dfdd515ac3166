"""Weights that no original file holds, sampled from a seed, part by part and with little memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import torch
from torch import nn

from rfedge.config import PolicyConfig
from rfedge.model.decoder import GatedCrossAttention
from rfedge.model.head import build_head
from rfedge.model.resampler import PerceiverResampler

Part = Literal["vision", "resampler", "cross-attention", "decoder", "embedding", "head", "output projection"]

_PARTS: Final[tuple[tuple[str, Part], ...]] = (
    (r"backbone\.vision\.", "vision"),
    (r"backbone\.(?:resampler|resampler_gripper)\.", "resampler"),
    (r"backbone\.decoder\.layers\.\d+\.cross_attention\.", "cross-attention"),
    (r"backbone\.decoder\.", "decoder"),
    (r"head\.", "head"),
    (r"output_projection\.", "output projection"),
    (r"", "embedding"),
)
_MODULE = re.compile(
    r"(backbone\.resampler|backbone\.resampler_gripper|backbone\.decoder\.layers\.(\d+)\.cross_attention|head)\.(.+)"
)
# What transformers initialises rows of new tokens with.
_NEW_ROW_DEVIATION: Final = 0.02


def part_of(name: str) -> Part:
    """Return the part of the paper that one of our tensors belongs to."""
    return next(part for pattern, part in _PARTS if re.match(pattern, name))


@dataclass(slots=True)
class SeededInit:
    """Initialises the parts of one policy; a part has the same values whichever others are initialised."""

    config: PolicyConfig
    seed: int
    _module: str = field(default="", repr=False)
    _values: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of the resampler, of a cross-attention or of the head, float32."""
        match = _MODULE.fullmatch(name)
        if match is None:
            raise ValueError(f"{name}: not of a part that can be initialised")
        module, layer, rest = match.groups()
        if module != self._module:
            self._values = {}  # before the next one is built, or two are in memory at once
            self._values = dict(self._draw(module, layer).state_dict())
            self._module = module
        return self._values[rest]

    def rows(self, count: int, width: int) -> torch.Tensor:
        """Return embeddings (count, width) of tokens that the language model did not know."""
        with torch.random.fork_rng(devices=[]):
            self._seed(3, 0)
            return torch.randn(count, width) * _NEW_ROW_DEVIATION

    def _draw(self, module: str, layer: str | None) -> nn.Module:
        config = self.config
        with torch.random.fork_rng(devices=[]):
            if layer is not None:
                self._seed(0, int(layer))
                return GatedCrossAttention(config.decoder, config.vision.width)
            if module == "head":
                self._seed(1, 0)
                return build_head(config.head, config.feature_size, config.chunk_size, config.window)
            self._seed(2, int(module.endswith("_gripper")))
            return PerceiverResampler(config.resampler, config.vision.width)

    def _seed(self, part: int, index: int) -> None:
        torch.manual_seed(int(np.random.SeedSequence([self.seed, part, index]).generate_state(1, np.uint64)[0] >> 1))
