"""Names and shapes of the original files at any size, to write stand-ins for files of many gigabytes.

Written down from the released files' key lists, not derived from the tables that the import reads them with.
"""

from typing import Final

from rfedge.config import (
    DecoderConfig,
    GPTNeoXConfig,
    LlamaConfig,
    LSTMHeadConfig,
    MPTConfig,
    PolicyConfig,
    ResamplerConfig,
    VisionConfig,
)
from rfedge.messages import POSE_SIZE

__all__ = [
    "Shapes",
    "clip_shapes",
    "language_model_config",
    "language_model_shapes",
    "openflamingo_shapes",
    "roboflamingo_shapes",
]

Shapes = dict[str, tuple[int, ...]]

# kind -> path of the blocks, name of the embedding
_PATHS: Final = {
    "mosaic_gpt": ("transformer.blocks", "transformer.wte"),
    "mpt": ("transformer.blocks", "transformer.wte"),
    "gpt_neox": ("gpt_neox.layers", "gpt_neox.embed_in"),
    "llama": ("model.layers", "model.embed_tokens"),
}


def roboflamingo_shapes(config: PolicyConfig) -> Shapes:
    """Return the `model_state_dict` of a .pth with an LSTM head: the frozen blocks are in it, CLIP and final norm are not.

    Raises:
        TypeError: another head; the original saved none.
    """
    decoder, head = config.decoder, config.head
    if not isinstance(head, LSTMHeadConfig):
        raise TypeError(f"got a head of kind {head.kind}, expected an LSTM")
    path, embedding = _PATHS[decoder.kind]
    shapes = _resampler(config.resampler, config.vision.width)
    shapes[f"lang_encoder.{embedding}.weight"] = (decoder.vocab_size, decoder.width)
    if decoder.kind == "gpt_neox":
        shapes |= _inverse_frequencies(decoder, f"lang_encoder.{path}.%d.decoder_layer")
    fused = [index for index in range(decoder.layers) if (index + 1) % decoder.cross_attention_every == 0]
    for index in fused:
        prefix = f"lang_encoder.{path}.{index}.gated_cross_attn_layer"
        shapes |= _cross_attention(prefix, decoder, config.vision.width)
    for index in range(decoder.layers):
        shapes |= _block(f"lang_encoder.old_decoder_blocks.{index}", decoder)
    if decoder.kind == "gpt_neox":
        shapes |= _inverse_frequencies(decoder, "lang_encoder.old_decoder_blocks.%d")
    for index in fused:
        shapes |= _cross_attention(f"lang_encoder.gated_cross_attn_layers.{index}", decoder, config.vision.width)
    for layer in range(head.layers):
        rows = 4 * head.hidden_size
        shapes |= {
            f"lm_head.rnn.weight_ih_l{layer}": (rows, head.hidden_size if layer else config.feature_size),
            f"lm_head.rnn.weight_hh_l{layer}": (rows, head.hidden_size),
            f"lm_head.rnn.bias_ih_l{layer}": (rows,),
            f"lm_head.rnn.bias_hh_l{layer}": (rows,),
        }
    for name, outputs in (("actions", POSE_SIZE), ("gripper", 1)):
        sizes = (head.hidden_size, *head.mlp_sizes, outputs * config.chunk_size)
        for index in range(len(sizes) - 1):
            shapes[f"lm_head.{name}.mlp.{2 * index}.weight"] = (sizes[index + 1], sizes[index])
            shapes[f"lm_head.{name}.mlp.{2 * index}.bias"] = (sizes[index + 1],)
    return {f"module.{name}": shape for name, shape in shapes.items()}


def openflamingo_shapes(config: PolicyConfig) -> Shapes:
    """Return the keys of a checkpoint.pt: what was trained, and of GPT-NeoX also the logits' matrix."""
    decoder = config.decoder
    path, embedding = _PATHS[decoder.kind]
    shapes = _resampler(config.resampler, config.vision.width)
    shapes[f"lang_encoder.{embedding}.weight"] = (decoder.vocab_size, decoder.width)
    if decoder.kind == "gpt_neox":
        shapes |= _inverse_frequencies(decoder, f"lang_encoder.{path}.%d.decoder_layer")
        shapes["lang_encoder.embed_out.weight"] = (decoder.vocab_size, decoder.width)
    for index in range(decoder.cross_attention_every - 1, decoder.layers, decoder.cross_attention_every):
        shapes |= _cross_attention(f"lang_encoder.{path}.{index}.gated_cross_attn_layer", decoder, config.vision.width)
    return shapes


def language_model_shapes(decoder: DecoderConfig, vocab_size: int) -> Shapes:
    """Return the keys of a language model's own file, before OpenFlamingo changed its vocabulary."""
    path, embedding = _PATHS[decoder.kind]
    shapes: Shapes = {f"{embedding}.weight": (vocab_size, decoder.width)}
    for index in range(decoder.layers):
        shapes |= _block(f"{path}.{index}", decoder)
    width = decoder.width
    if decoder.kind == "mosaic_gpt":
        return shapes | {"transformer.ln_f.weight": (width,)}
    if decoder.kind == "mpt":
        return shapes | {"transformer.norm_f.weight": (width,)}
    if decoder.kind == "llama":
        return shapes | {"model.norm.weight": (width,), "lm_head.weight": (vocab_size, width)}
    norm: Shapes = {"gpt_neox.final_layer_norm.weight": (width,), "gpt_neox.final_layer_norm.bias": (width,)}
    return shapes | norm | _inverse_frequencies(decoder, f"{path}.%d") | {"embed_out.weight": (vocab_size, width)}


def language_model_config(decoder: DecoderConfig, vocab_size: int) -> dict[str, object]:
    """Return the config.json beside it."""
    if isinstance(decoder, MPTConfig):
        sizes = {"d_model": decoder.width, "n_layers": decoder.layers, "n_heads": decoder.heads, "no_bias": True}
        if decoder.kind == "mosaic_gpt":
            own: dict[str, object] = {
                "alibi": True,
                "alibi_bias_max": 8,
                "attn_qk_ln": True,
                "attn_clip_qkv": None,
                "mlp_ratio": 4,
            }
        else:
            own = {"attn_config": {"alibi": True, "alibi_bias_max": 8, "qk_ln": False}, "expansion_ratio": 4}
        return {"model_type": decoder.kind, "vocab_size": vocab_size, **sizes, **own}
    sizes = {
        "hidden_size": decoder.width,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "intermediate_size": decoder.mlp_width,
    }
    if isinstance(decoder, GPTNeoXConfig):
        own = {"hidden_act": "gelu", "use_parallel_residual": False, "rotary_pct": 1.0, "layer_norm_eps": decoder.norm_eps}
    else:
        own = {"hidden_act": "silu", "rms_norm_eps": decoder.norm_eps}
    return {"model_type": decoder.kind, "vocab_size": vocab_size, **sizes, **own}


def clip_shapes(vision: VisionConfig) -> Shapes:
    """Return the keys of a whole CLIP in open_clip's names, as timm/vit_large_patch14_clip_224.openai holds it.

    The text tower is three quarters as wide and half as deep as the visual one, as in ViT-L/14.
    """
    text_width, text_layers = 3 * vision.width // 4, max(1, vision.layers // 2)
    shapes: Shapes = {
        "positional_embedding": (77, text_width),
        "text_projection": (text_width, text_width),
        "logit_scale": (),
        "visual.class_embedding": (vision.width,),
        "visual.positional_embedding": (vision.num_patches + 1, vision.width),
        "visual.proj": (vision.width, text_width),
        "visual.conv1.weight": (vision.width, 3, vision.patch_size, vision.patch_size),
        "token_embedding.weight": (49408, text_width),
    }
    for norm in ("visual.ln_pre", "visual.ln_post"):
        shapes |= _affine(norm, vision.width)
    shapes |= _affine("ln_final", text_width)
    towers = (("visual.transformer", vision.width, vision.layers), ("transformer", text_width, text_layers))
    for tower, width, layers in towers:
        for index in range(layers):
            block = f"{tower}.resblocks.{index}"
            shapes |= _affine(f"{block}.ln_1", width) | _affine(f"{block}.ln_2", width)
            shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
            shapes |= _linear(f"{block}.attn.out_proj", width, width)
            shapes |= _linear(f"{block}.mlp.c_fc", width, vision.mlp_ratio * width)
            shapes |= _linear(f"{block}.mlp.c_proj", vision.mlp_ratio * width, width)
    return shapes


def _resampler(config: ResamplerConfig, width: int) -> Shapes:
    inner = config.heads * config.head_size
    shapes: Shapes = {"perceiver.latents": (config.latents, width)}
    for index in range(config.layers):
        layer = f"perceiver.layers.{index}"
        shapes |= _affine(f"{layer}.0.norm_media", width) | _affine(f"{layer}.0.norm_latents", width)
        shapes |= {
            f"{layer}.0.to_q.weight": (inner, width),
            f"{layer}.0.to_kv.weight": (2 * inner, width),
            f"{layer}.0.to_out.weight": (width, inner),
        }
        shapes |= _affine(f"{layer}.1.0", width)
        shapes[f"{layer}.1.1.weight"] = (config.mlp_ratio * width, width)
        shapes[f"{layer}.1.3.weight"] = (width, config.mlp_ratio * width)
    return shapes | _affine("perceiver.norm", width)


def _cross_attention(prefix: str, decoder: DecoderConfig, media_width: int) -> Shapes:
    width, inner = decoder.width, decoder.cross_attention_heads * decoder.cross_attention_head_size
    shapes: Shapes = {
        f"{prefix}.attn_gate": (1,),
        f"{prefix}.ff_gate": (1,),
        f"{prefix}.attn.to_q.weight": (inner, width),
        f"{prefix}.attn.to_kv.weight": (2 * inner, media_width),
        f"{prefix}.attn.to_out.weight": (width, inner),
        f"{prefix}.ff.1.weight": (decoder.mlp_ratio * width, width),
        f"{prefix}.ff.3.weight": (width, decoder.mlp_ratio * width),
    }
    return shapes | _affine(f"{prefix}.attn.norm", width) | _affine(f"{prefix}.ff.0", width)


def _block(prefix: str, decoder: DecoderConfig) -> Shapes:
    width = decoder.width
    if isinstance(decoder, MPTConfig):
        mosaic = decoder.kind == "mosaic_gpt"
        norms = ("ln_1", "ln_2", "attn.q_ln", "attn.k_ln") if mosaic else ("norm_1", "norm_2")
        up, down = ("mlp.mlp_up", "mlp.mlp_down") if mosaic else ("ffn.up_proj", "ffn.down_proj")
        return {f"{prefix}.{norm}.weight": (width,) for norm in norms} | {
            f"{prefix}.attn.Wqkv.weight": (3 * width, width),
            f"{prefix}.attn.out_proj.weight": (width, width),
            f"{prefix}.{up}.weight": (decoder.mlp_ratio * width, width),
            f"{prefix}.{down}.weight": (width, decoder.mlp_ratio * width),
        }
    norms = ("input_layernorm", "post_attention_layernorm")
    if isinstance(decoder, LlamaConfig):
        kept = width // decoder.heads * decoder.key_value_heads
        return {f"{prefix}.{norm}.weight": (width,) for norm in norms} | {
            f"{prefix}.self_attn.q_proj.weight": (width, width),
            f"{prefix}.self_attn.k_proj.weight": (kept, width),
            f"{prefix}.self_attn.v_proj.weight": (kept, width),
            f"{prefix}.self_attn.o_proj.weight": (width, width),
            f"{prefix}.mlp.gate_proj.weight": (decoder.mlp_width, width),
            f"{prefix}.mlp.up_proj.weight": (decoder.mlp_width, width),
            f"{prefix}.mlp.down_proj.weight": (width, decoder.mlp_width),
        }
    shapes = _affine(f"{prefix}.{norms[0]}", width) | _affine(f"{prefix}.{norms[1]}", width)
    shapes |= _linear(f"{prefix}.attention.query_key_value", width, 3 * width)
    shapes |= _linear(f"{prefix}.attention.dense", width, width)
    shapes |= _linear(f"{prefix}.mlp.dense_h_to_4h", width, decoder.mlp_width)
    return shapes | _linear(f"{prefix}.mlp.dense_4h_to_h", decoder.mlp_width, width)


def _inverse_frequencies(decoder: DecoderConfig, block: str) -> Shapes:
    """Return the buffers that transformers saved before version 4.40, a half head each."""
    size = decoder.width // decoder.heads // 2
    return {f"{block % index}.attention.rotary_emb.inv_freq": (size,) for index in range(decoder.layers)}


def _affine(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, size_in: int, size_out: int) -> Shapes:
    return {f"{name}.weight": (size_out, size_in), f"{name}.bias": (size_out,)}
