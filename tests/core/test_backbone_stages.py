"""A backbone in two stages: what their contracts say, and how precisions of stages are named."""

import pytest

from rfedge.bundle.precision import BlockPrecision, summarise_blocks
from rfedge.bundle.stages import parse_precisions
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
    def called(requested: str, decoder: dict[str, int]) -> str:
        blocks = {"vision.blocks.0": {"fp16": 4}, "resampler.layers.0": {"fp16": 2, "fp32": 2}, "head": {"fp32": 1}}
        found = blocks | {"decoder.layers.0.block": decoder}
        return summarise_blocks(requested, {name: BlockPrecision(matmuls=matmuls) for name, matmuls in found.items()})

    assert called(MIXED, {"int8": 2, "fp32": 3}) == MIXED
    assert called(MIXED, {"fp32": 5}) == "vision=fp16,decoder=fp32"
    assert called("vision=fp16,decoder=fp32", {"fp16": 5}) == "fp16"
    assert parse_precisions("decoder=int8, vision=fp16", two_stages=True).requested == MIXED
    assert parse_precisions("vision=int8,decoder=int8", two_stages=True).requested == "int8"
