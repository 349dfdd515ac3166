"""What the name of a RoboFlamingo file claims. The original read its settings there; here a name only warns."""

from __future__ import annotations

import re
from typing import Final

from rfedge.config import PolicyConfig

# The language model's name in a file name -> preset; a name that contains another stands before it.
_LANGUAGE_MODELS: Final = (
    ("mpt_dolly_3b", "M-3B-IFT"),
    ("mpt_3b", "M-3B"),
    ("mpt_base_4b", "G-4B"),
    ("mpt_4b", "G-4B-IFT"),
    ("mpt_9b", "M-9B"),
    ("llama_9b", "L-9B"),
)


def disagreements(name: str, config: PolicyConfig) -> list[str]:
    """Return where `name`, of a .pth file, says something else than `config`, each as half a sentence."""
    claims: list[tuple[str, object, object]] = []
    if match := re.search(r"_ws_(\d+)(?=[_.])", name):
        claims.append((match[0].strip("_"), int(match[1]), config.window))
    if match := re.search(r"_(post|pre|two_way|vit_concat)_hist", name):
        claims.append((match[1], match[1], config.fusion))
    if match := re.search(r"(?<=_)(\d+)_fur_step", name):
        claims.append((match[0], int(match[1]), config.chunk_size))
    if re.search(r"_sep_", name):
        claims.append(
            ("sep", "a resampler for each camera", "one for each" if config.resampler.per_camera else "one for both")
        )
        claims = [claim for claim in claims if claim[0] != "sep" or not config.resampler.per_camera]
    if "_tcp_" in name:
        claims.append(("tcp", "actions in the frame of the tool", "actions in the world's frame"))
    for part, preset_name in _LANGUAGE_MODELS:
        if f"_{part}_" in name:
            claims.append((part, preset_name, config.name))
            break
    return [f"{said!r} says {claimed}, the import {actual}" for said, claimed, actual in claims if claimed != actual]
