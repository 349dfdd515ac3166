"""Parts of the original code's small models: their weights with inputs and outputs, and mistakes to make on purpose."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from rfedge.config import GPTNeoXConfig, MPTConfig, VisionConfig
from rfedge.model.decoder import FusionDecoder, causal_bias, media_mask
from rfedge.model.head import LSTMHead
from rfedge.model.original.names import clip_names, model_names
from rfedge.model.vision import VisionBlock, VisionTransformer

FIXTURES = Path(__file__).parent / "fixtures"
MEDIA_TOKEN_ID = 101

Change = Callable[[nn.Module, pytest.MonkeyPatch], None]


def fill(module: nn.Module, tensors: dict[str, torch.Tensor], names: dict[str, str | None], prefix: str) -> None:
    """Load what the original calls `names`; only the final norm may stay as it is."""
    found = {name.removeprefix(prefix): tensors[key] for key, name in names.items() if name and name.startswith(prefix)}
    missing, unexpected = module.load_state_dict(found, strict=False)
    assert not unexpected
    assert all(name.startswith("ln_f.") for name in missing), missing


@torch.no_grad()
def vision_difference(change: Callable[[nn.Module], None] = lambda _: None) -> float:
    tensors = load_file(FIXTURES / "vit.safetensors")
    arrays = {key.removeprefix("io/"): tensors.pop(key) for key in list(tensors) if key.startswith("io/")}
    vision = VisionTransformer(VisionConfig(image_size=56, patch_size=14, width=64, layers=3, heads=2))
    fill(vision, tensors, clip_names(tensors), "backbone.vision.")
    change(vision)
    tokens = vision(arrays["in/vision_x"].flatten(0, 2))
    expected = arrays["vit/tokens"]
    return float((tokens - expected).abs().max()) if tokens.shape == expected.shape else float("inf")


@torch.no_grad()
def decoder_difference(name: str, change: Callable[[nn.Module], None] = lambda _: None, *, masked: bool = True) -> float:
    """Worst difference over what the first layer returns; `name` is the fixture's and the kind's."""
    tensors = load_file(FIXTURES / f"{name}.safetensors")
    arrays = {key.removeprefix("io/"): tensors.pop(key) for key in list(tensors) if key.startswith("io/")}
    config: MPTConfig | GPTNeoXConfig
    if name == "mosaic_gpt":
        config = MPTConfig(width=96, layers=1, heads=4, vocab_size=103, text_length=19, feature="last_block")
    else:
        config = GPTNeoXConfig(
            kind="gpt_neox",
            width=96,
            layers=1,
            heads=4,
            vocab_size=103,
            text_length=19,
            mlp_width=384,
            cross_attention_every=2,
            feature="last_block",
        )
    decoder = FusionDecoder(config, media_width=64)
    names = model_names(tensors, config.kind)
    fill(decoder, tensors, names, "backbone.decoder.")
    change(decoder)
    (embedding,) = (tensors[key] for key, ours in names.items() if ours == "embedding.weight")
    ids, mask = arrays["in/lang_x"], arrays["in/attention_mask"].bool()
    latents = arrays.get("perceiver/out", torch.zeros(len(ids), 1, 64, 64))
    num_images, num_latents = latents.shape[1:3]
    read = media_mask((ids == MEDIA_TOKEN_ID).cumsum(dim=1), num_images, num_latents) if masked else None
    states = decoder.tokens(embedding[ids], latents.flatten(1, 2), key_mask_NT=mask, mask=read)
    return float((states - arrays["lm/layer0/out"]).abs().max())


def parts(module: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    found = [part for part in module.modules() if isinstance(part, kind)]
    assert found
    return found


# ---- mistakes; each takes a loaded model and the test's monkeypatch


def erf_in_the_vision_transformer(module: nn.Module, patch: pytest.MonkeyPatch) -> None:
    def forward(self: VisionBlock, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.ln_1(x)).chunk(3, dim=-1))
        x = x + self.out_proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        return x + self.mlp_down(functional.gelu(self.mlp_up(self.ln_2(x))))

    patch.setattr(VisionBlock, "forward", forward)


def tokens_after_ln_post(module: nn.Module, patch: pytest.MonkeyPatch) -> None:
    right = VisionTransformer.forward
    patch.setattr(VisionTransformer, "forward", lambda self, image: functional.layer_norm(right(self, image), (64,)))


def class_token_included(module: nn.Module, patch: pytest.MonkeyPatch) -> None:
    def forward(self: VisionTransformer, image: torch.Tensor) -> torch.Tensor:
        x = self.conv1(image).flatten(2).transpose(1, 2)
        x = self.ln_pre(torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding)
        for block in self.blocks:
            x = block(x)
        return x

    patch.setattr(VisionTransformer, "forward", forward)


def no_tanh_on_the_gates(module: nn.Module, patch: pytest.MonkeyPatch) -> None:
    for part in module.modules():
        for name in ("attention_gate", "feed_forward_gate"):
            if hasattr(part, name):
                gate = getattr(part, name)
                gate.data = torch.atanh(gate.data.clamp(-0.999, 0.999))


def no_norm_of_q_and_k(module: nn.Module, patch: pytest.MonkeyPatch) -> None:
    for part in module.modules():
        if hasattr(part, "q_ln"):
            part.q_ln = part.k_ln = nn.Identity()


def no_alibi(module: nn.Module, patch: pytest.MonkeyPatch) -> None:
    for decoder in parts(module, FusionDecoder):
        decoder.bias = causal_bias(decoder.bias.shape[-1]).expand_as(decoder.bias)


def gelu_by_tanh(module: nn.Module, patch: pytest.MonkeyPatch) -> None:
    right = functional.gelu
    patch.setattr(functional, "gelu", lambda x: right(x, approximate="tanh"))


def small_norm_eps(module: nn.Module, patch: pytest.MonkeyPatch) -> None:
    for norm in parts(module, nn.LayerNorm):
        norm.eps = 1e-6


def no_rotary_positions(module: nn.Module, patch: pytest.MonkeyPatch) -> None:
    for decoder in parts(module, FusionDecoder):
        decoder.rotary = torch.stack([torch.ones_like(decoder.rotary[0]), torch.zeros_like(decoder.rotary[1])])


def q_k_v_not_interleaved(module: nn.Module, patch: pytest.MonkeyPatch) -> None:
    for part in module.modules():
        if hasattr(part, "qkv") and not isinstance(part, VisionBlock):
            for value in (part.qkv.weight, part.qkv.bias):
                value.data = value.data.unflatten(0, (3, part.heads, -1)).transpose(0, 1).flatten(0, 2)


def norm_instead_of_last_block_input(module: nn.Module, patch: pytest.MonkeyPatch) -> None:
    for decoder in parts(module, FusionDecoder):
        assert decoder.feature == "last_block_input"
        decoder.feature = "final_norm"
    module.config = module.config.model_copy(
        update={"decoder": module.config.decoder.model_copy(update={"feature": "final_norm"})}
    )


def padding_left_out_of_the_pool(module: nn.Module, patch: pytest.MonkeyPatch) -> None:
    for decoder in parts(module, FusionDecoder):
        right_tokens, right_pool, seen = decoder.tokens, decoder.pool, {}

        def tokens(text, media, *, key_mask_NT=None, mask=None, right=right_tokens, seen=seen):  # noqa: N803
            seen["mask"] = key_mask_NT
            return right(text, media, key_mask_NT=key_mask_NT, mask=mask)

        decoder.tokens = tokens
        decoder.pool = lambda x, _, right=right_pool, seen=seen: right(x, seen["mask"])


def other_lstm_gate_order(module: nn.Module, patch: pytest.MonkeyPatch) -> None:
    for head in parts(module, LSTMHead):
        for parameter in head.rnn.parameters():
            i, f, g, o = parameter.data.chunk(4)
            parameter.data = torch.cat([i, f, o, g])


def cameras_swapped(module: nn.Module, patch: pytest.MonkeyPatch) -> None:
    right = module.backbone.media
    module.backbone.media = lambda tokens: right(torch.cat(tokens.chunk(2)[::-1]))
