"""A parity fixture: a small model saved by the original code, with its inputs and outputs, stage by stage."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import ValidationError

from rfedge.arrays import Array
from rfedge.config import LSTMHeadConfig, PolicyConfig, ResamplerConfig, VisionConfig
from rfedge.errors import ArtifactError
from rfedge.io.disk import read_json
from rfedge.model.original.language_models import decoder_config
from rfedge.model.original.plan import OriginalWeights

# open_flamingo's names -> ours
_RESAMPLER_SIZES: Final = {
    "depth": "layers", "num_latents": "latents", "heads": "heads", "dim_head": "head_size", "ff_mult": "mlp_ratio"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ParityFixture:
    """One fixture folder."""

    root: Path
    document: dict[str, Any]
    policy: PolicyConfig  # of the same model; without a RoboFlamingo file its head means nothing
    weights: OriginalWeights  # in the original's order
    arrays: dict[str, Array]

    @property
    def has_head(self) -> bool:
        """Whether this is RoboFlamingo, not OpenFlamingo alone."""
        return self.weights.roboflamingo is not None


def open_fixture(root: Path) -> ParityFixture:
    """Read a fixture folder: `of_*` (OpenFlamingo) or `rf_*` (RoboFlamingo around one)."""
    try:
        document = read_json(root / "config.json")
        with np.load(root / "io.npz", allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        weights = _weights(root, document)
        config = _policy(document, weights, arrays)
    except (OSError, ValidationError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(
            f"fixture {root}", got=repr(error), expected="config.json, io.npz and weights", remedy="Copy it again."
        ) from error
    return ParityFixture(root, document, config, weights, arrays)


def _weights(root: Path, document: dict[str, Any]) -> OriginalWeights:
    base = document.get("base")
    if base is None:
        return OriginalWeights(root / "lm", root / "clip_visual.safetensors", root / "checkpoint.pt")
    roboflamingo = root / "roboflamingo_checkpoint.pth"
    # What the original never saves (a gripper resampler of its own) can only be in a file beside it.
    separate = document.get("sep_resampler", False)
    others = sorted({*root.glob("*.safetensors"), *root.glob("*.pt"), *root.glob("*.pth")} - {roboflamingo})
    return OriginalWeights(
        (root / base["lm_dir"]).resolve(),
        (root / base["clip"]).resolve(),
        (root / base["openflamingo_checkpoint"]).resolve(),
        roboflamingo,
        tuple(others) if separate else (),
    )


def _policy(document: dict[str, Any], weights: OriginalWeights, arrays: dict[str, Array]) -> PolicyConfig:
    # The sizes of resampler and cross-attention are with the OpenFlamingo files when the RoboFlamingo's are silent.
    base_path = weights.language_model.parent / "config.json"
    base = read_json(base_path) if base_path.is_file() else {}
    merged = {**base, **document}
    vision = merged["clip"]["vision_cfg"]
    sizes = {_RESAMPLER_SIZES[name]: size for name, size in merged.get("perceiver", {}).items() if name in _RESAMPLER_SIZES}
    resampler = {"layers": 6, "latents": 64, **sizes}  # open_flamingo's defaults
    cross_attention = merged.get("cross_attention", {})
    texts = [array.shape[1] for name, array in arrays.items() if name.endswith("lang_x") or name == "generate/tokens"]
    decoder = decoder_config(
        weights.language_model,
        vocab_size=merged.get("vocab_after_resize") or merged["lm_config"]["vocab_size"],
        text_length=max(texts),
        mlp_ratio=cross_attention.get("ff_mult", 4),
        cross_attention_every=merged["cross_attn_every_n_layers"],
        cross_attention_heads=cross_attention.get("heads", 8),
        cross_attention_head_size=cross_attention.get("dim_head", 64),
    )
    if decoder.kind == "mosaic_gpt" and "head" in document:
        decoder = decoder.model_copy(update={"feature": "last_block_input"})
    head = document.get("head", {"hidden_size": 8, "num_layers": 1})
    window = document.get("history_len") or document.get("window_size") or 1
    for field, expected in (("decoder_type", "lstm"), ("use_gripper", True), ("use_state", False), ("last_action", False)):
        if document.get(field, expected) != expected:
            raise ArtifactError(f"fixture: {field}", got=document[field], expected=expected, remedy="No policy here has it.")
    return PolicyConfig(
        name=document.get("name", "original"),
        vision=VisionConfig(
            **{name: vision[name] for name in ("image_size", "patch_size", "width", "layers")},
            heads=vision["width"] // vision.get("head_width", 64),
            mlp_ratio=int(vision.get("mlp_ratio", 4)),
        ),
        resampler=ResamplerConfig(**resampler, per_camera=document.get("sep_resampler", False)),
        decoder=decoder,
        head=LSTMHeadConfig(hidden_size=head["hidden_size"], layers=head["num_layers"]),
        pooling="max" if document.get("pooling", "max") == "max" else "average",
        fusion=document.get("fusion_mode", "post"),
        window=window,
        time_keeping="window",
        chunk_size=document.get("multi_step_action", 1),
    )
