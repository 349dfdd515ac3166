"""What every decoder of the family promises, whatever its architecture."""

import pytest
import torch
from pydantic import ValidationError

from rfedge.config import DecoderConfig, GPTNeoXConfig, LlamaConfig, MPTConfig, PolicyConfig, preset
from rfedge.model.decoder import FusionDecoder
from tests.tolerances import assert_same_in_fp32, decoder_terms

SIZES = {"width": 48, "layers": 4, "heads": 4, "vocab_size": 32, "text_length": 10, "cross_attention_every": 2}
DECODERS = {
    "mosaic_gpt": MPTConfig(**SIZES, gate_init=1.0),
    "mpt": MPTConfig(kind="mpt", qk_norm=False, **SIZES, gate_init=1.0),
    "neox": GPTNeoXConfig(kind="gpt_neox", mlp_width=96, **SIZES, gate_init=1.0),
    "parallel": GPTNeoXConfig(
        kind="gpt_neox", mlp_width=96, parallel_residual=True, rotary_fraction=0.5, **SIZES, gate_init=1.0
    ),
    "llama": LlamaConfig(kind="llama", mlp_width=96, key_value_heads=2, **SIZES, gate_init=1.0),
}


@pytest.fixture(params=DECODERS)
def config(request: pytest.FixtureRequest) -> DecoderConfig:
    return DECODERS[request.param]


NUM_MEDIA = 6


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 10, 48, generator=generator), torch.randn(2, NUM_MEDIA, 24, generator=generator)


def decoder_of(config: DecoderConfig) -> FusionDecoder:
    torch.manual_seed(0)
    return FusionDecoder(config, media_width=24).eval()


@torch.no_grad()
def test_a_token_sees_the_past_and_the_images_only(config: DecoderConfig) -> None:
    decoder, (text, media) = decoder_of(config), inputs()
    states = decoder.tokens(text, media)
    text[:, 6] *= -1.0  # not a constant added: a LayerNorm takes that away
    changed = decoder.tokens(text, media)
    assert_same_in_fp32(changed[:, :6], states[:, :6], decoder_terms(config, NUM_MEDIA))
    assert (changed[:, 6:] - states[:, 6:]).abs().amax(dim=-1).min() > 1e-4
    assert (decoder.tokens(text, media + 1.0) - changed).abs().max() > 1e-3


@torch.no_grad()
def test_hidden_padding_changes_no_real_token_on_either_side(config: DecoderConfig) -> None:
    decoder, (text, media) = decoder_of(config), inputs()
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[:, :3] = False
    states, terms = decoder.tokens(text, media, key_mask_NT=mask), decoder_terms(config, NUM_MEDIA)
    text[:, :3] *= -1.0
    assert_same_in_fp32(
        decoder.tokens(text, media, key_mask_NT=mask)[:, 3:], states[:, 3:], decoder_terms(config, NUM_MEDIA)
    )
    # ALiBi and rotary positions are relative: the same text without its padding says the same.
    assert_same_in_fp32(decoder.tokens(text[:, 3:], media), states[:, 3:], terms)


def test_cross_attention_comes_before_every_nth_layer(config: DecoderConfig) -> None:
    decoder = decoder_of(config)
    assert [layer.cross_attention is not None for layer in decoder.layers] == [False, True, False, True]


def test_a_configuration_is_read_back_as_its_own_kind(config: DecoderConfig) -> None:
    policy = preset("tiny").model_copy(update={"decoder": config})
    assert PolicyConfig.model_validate(policy.model_dump(mode="json")) == policy


def test_a_configuration_without_a_kind_is_mosaic_gpts() -> None:
    document = preset("tiny").model_dump(mode="json")
    del document["decoder"]["kind"]
    assert PolicyConfig.model_validate(document) == preset("tiny")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "bert"}, "does not match any of the expected tags"),
        ({"kind": "mpt"}, "only 'mosaic_gpt' holds these norms"),
        ({"heads": 3}, "expected a multiple of heads (3)"),
        ({"rotary_base": 10000.0}, "Extra inputs are not permitted"),
    ],
)
def test_a_decoder_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    document = preset("tiny").model_dump(mode="json")
    document["decoder"].update(changes)
    with pytest.raises(ValidationError) as error:
        PolicyConfig.model_validate(document)
    assert message in str(error.value)
