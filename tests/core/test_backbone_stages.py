"""A backbone in two stages: what their contracts say, and how precisions of stages are named."""

import pytest

from rfedge.bundle.stages import parse_precisions, summarise_blocks
from rfedge.config import preset
from rfedge.contract import PolicyContract, policy_contract
from tests.model.family import CHANGES, member

MIXED = "vision=fp16,decoder=int8"


@pytest.mark.parametrize("name", ["tiny", *CHANGES])
def test_the_contracts_of_the_stages_make_up_that_of_the_backbone(name: str) -> None:
    config = preset("tiny") if name == "tiny" else member(name)
    contract = policy_contract(config, two_stages=True)
    assert list(contract.graphs) == ["vision", "decoder", "head"]
    vision, decoder = contract.graphs["vision"], contract.graphs["decoder"]
    media = vision.outputs[0]
    assert [spec.name for spec in vision.outputs] == ["media"]
    assert (media.shape, media.dtype) == ((1, config.latents_per_frame, config.vision.width), "float32")
    assert {*vision.inputs, *decoder.inputs} == {*contract.backbone.inputs, media}
    assert {*decoder.outputs} == {*contract.backbone.outputs} - {media}
    single = policy_contract(config)
    assert single.graphs == {"backbone": contract.backbone, "head": contract.head}
    # as it was written before there were stages
    old = PolicyContract.model_validate_json(single.model_dump_json(exclude={"backbone_stages"}))
    assert old == single


def test_a_bundle_is_called_by_what_its_stages_really_are() -> None:
    blocks = {"vision.blocks.0": "fp16", "resampler.layers.0": "fp16 (2 of 4 MatMuls)", "head": "fp32"}
    assert summarise_blocks(MIXED, {**blocks, "decoder.layers.0.block": "int8 (2 of 5 MatMuls)"}) == MIXED
    assert summarise_blocks(MIXED, {**blocks, "decoder.layers.0.block": "fp32"}) == "vision=fp16,decoder=fp32"
    assert summarise_blocks("vision=fp16,decoder=fp32", {**blocks, "decoder.layers.0.block": "fp16"}) == "fp16"
    assert parse_precisions("decoder=int8, vision=fp16", two_stages=True).requested == MIXED
    assert parse_precisions("vision=int8,decoder=int8", two_stages=True).requested == "int8"
