"""Names of tensors in the original files -> names in our policy.

One table a part. A name goes through: wrappers of the trainer are stripped, the language model's path is shortened to
`layers.{i}` whatever the copy (`decoder_layer`, `old_decoder_blocks`), then the first rule that matches rewrites it.
Sources: key lists of the released files; open_clip, open_flamingo, RoboFlamingo and transformers as they save.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

# The answer for a tensor that is known and not needed.
IGNORED: Final = ""
# The logits of GPT-NeoX and LLaMA; no part of a policy, so no tensor of ours.
OUTPUT_PROJECTION: Final = "output_projection.weight"
# What a name ends with where q, k and v, one tensor here, are three in the file; in the order of their rows.
THIRDS: Final = ("[q]", "[k]", "[v]")

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

_Rules = tuple[tuple[str, str], ...]

_VISION: Final[_Rules] = (
    (r"(conv1\.weight|class_embedding|positional_embedding|ln_pre\.(?:weight|bias))", r"\1"),
    (r"transformer\.resblocks\.(\d+)\.(ln_[12]\.(?:weight|bias))", r"blocks.\1.\2"),
    (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", r"blocks.\1.qkv.\2"),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(weight|bias)", r"blocks.\1.out_proj.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(weight|bias)", r"blocks.\1.mlp_up.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(weight|bias)", r"blocks.\1.mlp_down.\2"),
    (r"ln_post\.(?:weight|bias)|proj", IGNORED),  # act on the class token, which the policy does not read
)
_VISION_TRANSFORMERS: Final[_Rules] = (
    (r"embeddings\.class_embedding", "class_embedding"),
    (r"embeddings\.patch_embedding\.weight", "conv1.weight"),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"embeddings\.position_ids", IGNORED),
    (r"pre_layrnorm\.(weight|bias)", r"ln_pre.\1"),  # spelt so upstream
    (r"encoder\.layers\.(\d+)\.layer_norm([12])\.(weight|bias)", r"blocks.\1.ln_\2.\3"),
    (r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", r"blocks.\1.qkv.\3[\2]"),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(weight|bias)", r"blocks.\1.out_proj.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc1\.(weight|bias)", r"blocks.\1.mlp_up.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc2\.(weight|bias)", r"blocks.\1.mlp_down.\2"),
    (r"post_layernorm\.(?:weight|bias)|visual_projection\.weight", IGNORED),
)
_VISION_TIMM: Final[_Rules] = (
    (r"cls_token", "class_embedding"),
    (r"pos_embed", "positional_embedding"),
    (r"patch_embed\.proj\.weight", "conv1.weight"),
    (r"norm_pre\.(weight|bias)", r"ln_pre.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(weight|bias)", r"blocks.\1.ln_\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"blocks.\1.qkv.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"blocks.\1.out_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(weight|bias)", r"blocks.\1.mlp_up.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(weight|bias)", r"blocks.\1.mlp_down.\2"),
    (r"(?:norm|fc_norm|head)\.(?:weight|bias)", IGNORED),
)

_RESAMPLER: Final[_Rules] = (
    (r"(latents|norm\.(?:weight|bias))", r"\1"),
    (r"layers\.(\d+)\.0\.(norm_(?:media|latents)\.(?:weight|bias))", r"layers.\1.\2"),
    (r"layers\.(\d+)\.0\.(to_(?:q|kv|out)\.weight)", r"layers.\1.attention.\2"),
    (r"layers\.(\d+)\.1\.0\.(weight|bias)", r"layers.\1.feed_forward.norm.\2"),
    (r"layers\.(\d+)\.1\.1\.weight", r"layers.\1.feed_forward.up.weight"),
    (r"layers\.(\d+)\.1\.3\.weight", r"layers.\1.feed_forward.down.weight"),
)

_CROSS_ATTENTION: Final[_Rules] = (
    (r"attn_gate", "attention_gate"),
    (r"ff_gate", "feed_forward_gate"),
    (r"attn\.(norm\.(?:weight|bias))", r"\1"),
    (r"attn\.(to_(?:q|kv|out)\.weight)", r"attention.\1"),
    (r"ff\.0\.(weight|bias)", r"feed_forward.norm.\1"),
    (r"ff\.1\.weight", "feed_forward.up.weight"),
    (r"ff\.3\.weight", "feed_forward.down.weight"),
)

_HEAD: Final[_Rules] = (
    (r"(rnn\.(?:weight|bias)_(?:ih|hh)_l\d+)", r"\1"),
    (r"actions\.mlp\.(\d+\.(?:weight|bias))", r"pose.\1"),
    (r"gripper\.mlp\.(\d+\.(?:weight|bias))", r"gripper.\1"),
)

# Buffers that some versions of transformers save: constants, computed here.
_BUFFERS: Final[_Rules] = ((r"(?:.*\.)?(?:inv_freq|masked_bias|attn_bias|attention\.bias)", IGNORED),)

# MosaicGPT became MPT, and its later versions use the names of MPT.
_MPT_BLOCK: Final[_Rules] = (
    (r"(?:ln|norm)_([12])\.weight", r"ln_\1.weight"),
    (r"attn\.Wqkv\.weight", "qkv.weight"),
    (r"attn\.((?:q_ln|k_ln|out_proj)\.weight)", r"\1"),
    (r"mlp\.(mlp_(?:up|down)\.weight)", r"\1"),
    (r"ffn\.(up|down)_proj\.weight", r"mlp_\1.weight"),
)
_BLOCK: Final[dict[str, _Rules]] = {
    "mosaic_gpt": _MPT_BLOCK,
    "mpt": _MPT_BLOCK,
    "gpt_neox": (
        (r"input_layernorm\.(weight|bias)", r"ln_1.\1"),
        (r"post_attention_layernorm\.(weight|bias)", r"ln_2.\1"),
        (r"attention\.query_key_value\.(weight|bias)", r"qkv.\1"),
        (r"attention\.dense\.(weight|bias)", r"out_proj.\1"),
        (r"mlp\.dense_h_to_4h\.(weight|bias)", r"mlp_up.\1"),
        (r"mlp\.dense_4h_to_h\.(weight|bias)", r"mlp_down.\1"),
    ),
    "llama": (
        (r"input_layernorm\.weight", "ln_1.weight"),
        (r"post_attention_layernorm\.weight", "ln_2.weight"),
        (r"self_attn\.([qkv]_proj\.weight)", r"\1"),
        (r"self_attn\.o_proj\.weight", "out_proj.weight"),
        (r"mlp\.(gate|up|down)_proj\.weight", r"mlp_\1.weight"),
    ),
}

# Outside of the blocks: path of the blocks, then rules for the rest.
_BLOCKS_PATH: Final = {
    "mosaic_gpt": "transformer.blocks.",
    "mpt": "transformer.blocks.",
    "gpt_neox": "gpt_neox.layers.",
    "llama": "model.layers.",
}
_MPT_OUTSIDE: Final[_Rules] = (
    (r"transformer\.wte\.weight", "embedding.weight"),
    (r"transformer\.(?:ln|norm)_f\.weight", "backbone.decoder.ln_f.weight"),
    (r"lm_head\.weight", IGNORED),  # tied to the embedding
)
_OUTSIDE: Final[dict[str, _Rules]] = {
    "mosaic_gpt": _MPT_OUTSIDE,
    "mpt": _MPT_OUTSIDE,
    "gpt_neox": (
        (r"gpt_neox\.embed_in\.weight", "embedding.weight"),
        (r"gpt_neox\.final_layer_norm\.(weight|bias)", r"backbone.decoder.ln_f.\1"),
        (r"(?:embed_out|lm_head)\.weight", OUTPUT_PROJECTION),
    ),
    "llama": (
        (r"model\.embed_tokens\.weight", "embedding.weight"),
        (r"model\.norm\.weight", "backbone.decoder.ln_f.weight"),
        (r"lm_head\.weight", OUTPUT_PROJECTION),
    ),
}


def model_names(names: Iterable[str], kind: str) -> dict[str, str | None]:
    """Return what the tensors of one language model, OpenFlamingo or RoboFlamingo file are called here.

    For each key a name in `RoboFlamingo.state_dict()`, or `OUTPUT_PROJECTION`, or `IGNORED`, or None for a name nobody
    knows. Two keys may get the same name: the original keeps cross-attention under two paths.
    """
    plain = {name: _WRAPPERS.sub("", name) for name in names}
    towers = {key: name.removeprefix("vision_encoder.") for key, name in plain.items() if name.startswith("vision_encoder.")}
    return {**{key: _model_name(name, kind) for key, name in plain.items() if key not in towers}, **_vision_names(towers)}


def clip_names(names: Iterable[str]) -> dict[str, str | None]:
    """Return what the tensors of a CLIP file are called here, as `model_names` does; the text tower is ignored."""
    return _vision_names({name: _WRAPPERS.sub("", name) for name in names})


def split_third(name: str) -> tuple[str, str]:
    """Return a name without its third, and the third or nothing: "qkv.bias[k]" is ("qkv.bias", "[k]")."""
    return (name[:-3], name[-3:]) if name.endswith(THIRDS) else (name, "")


def _vision_names(names: dict[str, str]) -> dict[str, str | None]:
    # Where the whole of CLIP is stored, a mark tells its visual half, and the rest has the same names for text.
    # OpenFlamingo stores the visual half alone, without the mark, as transformers does since version 5.
    plain = list(names.values())
    mark = next((mark for mark in ("visual.", "vision_model.") if any(name.startswith(mark) for name in plain)), "")
    bare = [name.removeprefix(mark) for name in plain]
    rules = _VISION
    if any(name.startswith("embeddings.") for name in bare):
        rules = _VISION_TRANSFORMERS
    elif "cls_token" in bare:
        rules = _VISION_TIMM
    return {
        key: IGNORED if not name.startswith(mark) else _under("backbone.vision.", _rewrite(name.removeprefix(mark), rules))
        for key, name in names.items()
    }


def _model_name(name: str, kind: str) -> str | None:
    for prefix, part in (("perceiver.", "resampler."), ("perceiver_gripper.", "resampler_gripper.")):
        if name.startswith(prefix):
            return _under(f"backbone.{part}", _rewrite(name.removeprefix(prefix), _RESAMPLER))
    name = name.removeprefix("lang_encoder.")
    if name.startswith(("lm_head.rnn.", "lm_head.actions.", "lm_head.gripper.")):
        return _under("head.", _rewrite(name.removeprefix("lm_head."), _HEAD))
    if (buffer := _rewrite(name, _BUFFERS)) is not None:
        return buffer
    for path in (_BLOCKS_PATH[kind], "old_decoder_blocks.", "gated_cross_attn_layers."):
        if name.startswith(path) and (match := re.fullmatch(r"(\d+)\.(.+)", name.removeprefix(path))):
            index, rest = match.groups()
            if path == "gated_cross_attn_layers." or rest.startswith("gated_cross_attn_layer."):
                rewritten = _under(
                    "cross_attention.", _rewrite(rest.removeprefix("gated_cross_attn_layer."), _CROSS_ATTENTION)
                )
            else:
                rewritten = _under("block.", _rewrite(rest.removeprefix("decoder_layer."), _BLOCK[kind]))
            return _under(f"backbone.decoder.layers.{index}.", rewritten)
    return _rewrite(name, _OUTSIDE[kind])


def _rewrite(name: str, rules: _Rules) -> str | None:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return None


def _under(prefix: str, name: str | None) -> str | None:
    return prefix + name if name else name
