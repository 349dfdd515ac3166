"""Blocks before the first cross-attention run on a fixed list of sentences: the same features, from smaller graphs."""

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rfedge.bundle.artifact import Bundle
from rfedge.config import PolicyConfig, preset
from rfedge.contract import policy_contract
from rfedge.data import CalvinDataset
from rfedge.export.options import ExportOptions
from rfedge.export.pipeline import export_checkpoint
from rfedge.export.proof import verify_parity
from rfedge.export.words import Words, words_before_media
from rfedge.model import build_policy, load_checkpoint
from rfedge.runtimes.policy.edge_policy import EdgePolicy
from tests.export.conftest import write_checkpoint
from tests.synthetic_demonstrations import write_demonstrations
from tests.tolerances import assert_same_in_fp32, backbone_terms

EVERY = 3


def sparse(kind: str) -> PolicyConfig:
    """Return `tiny` with cross-attention before its last decoder block alone, as the 9B models begin."""
    base = preset("tiny")
    full_size = preset({"mpt": "M-9B", "llama": "L-9B", "gpt_neox": "G-4B"}[kind]).decoder.model_dump()
    sizes = base.decoder.model_dump(include={"width", "heads", "vocab_size", "text_length", "cross_attention_heads"})
    decoder = {**full_size, **sizes, "layers": EVERY, "cross_attention_every": EVERY}
    for name in ("mlp_width", "key_value_heads"):
        if name in decoder:
            decoder[name] = base.decoder.heads if name == "key_value_heads" else 2 * base.decoder.width
    return PolicyConfig.model_validate({**base.model_dump(), "name": kind, "decoder": decoder})


@pytest.mark.parametrize("kind", ["mpt", "llama", "gpt_neox"])
def test_a_decoder_goes_on_where_its_first_blocks_ended(kind: str) -> None:
    policy = build_policy(sparse(kind), seed=0).eval()
    words = Words(policy.backbone.decoder)
    assert words.num_blocks == EVERY - 1
    sample = policy_contract(policy.config).backbone.sample_inputs(np.random.default_rng(0), dynamic_size=7)
    inputs = {name: torch.from_numpy(array) for name, array in sample.items()}
    with torch.no_grad():
        whole = policy.backbone(**inputs)
        policy.backbone.decoder.first = words.num_blocks
        rest = policy.backbone(**{**inputs, "text_embedding": torch.from_numpy(words(sample["text_embedding"]))})
    assert torch.equal(rest, whole)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("demonstrations")) / "training"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mpt", "llama", "gpt_neox"])
def test_the_blocks_are_run_once_for_each_sentence(kind: str, tmp_path: Path, data: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", sparse(kind))
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("\n".join(sorted(CalvinDataset.open(data).instructions)))
    options = ExportOptions(num_parity_steps=3)
    plain = export_checkpoint(checkpoint, tmp_path / "plain", options)
    ahead = export_checkpoint(checkpoint, tmp_path / "ahead", dataclasses.replace(options, instructions=str(sentences)))
    assert (plain.manifest.words_blocks, ahead.manifest.words_blocks) == (0, EVERY - 1)
    assert {name for name in plain.manifest.precision.blocks if name not in ahead.manifest.precision.blocks} == {
        f"decoder.layers.{index}.block" for index in range(EVERY - 1)
    }
    terms = backbone_terms(plain.policy)
    for sentence in CalvinDataset.open(data).instructions:
        assert_same_in_fp32(features(ahead, sentence), features(plain, sentence), terms)
    verify_parity(ahead, checkpoint, data=data, num_steps=3, seed=1)


def features(bundle: Bundle, sentence: str) -> npt.NDArray[np.float32]:
    inputs = bundle.contract.backbone.sample_inputs(np.random.default_rng(0))
    with EdgePolicy.load(bundle.root) as policy:
        text = policy.parts.encoder(sentence)
        return policy.parts.backbone.infer({**inputs, "text_embedding": text.embedding, "text_mask": text.mask})["feature"]


def test_sentences_that_begin_alike_share_states(tmp_path: Path) -> None:
    policy = load_checkpoint(write_checkpoint(tmp_path / "checkpoint", sparse("mpt"))).policy
    words = Words(policy.backbone.decoder)
    table = policy.embedding.weight.detach().numpy()
    sentences = [np.array(ids) for ids in ([1, 2, 3], [1, 2, 4, 5], [3])]
    places, states = words.states(sentences, table)
    assert [list(place) for place in places] == [[0, 1, 2], [0, 1, 3, 4], [5]]
    for ids, place in zip(sentences, places, strict=True):
        np.testing.assert_allclose(states[place], words(table[ids][None])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_int8_is_calibrated_and_proved_behind_the_blocks(tmp_path: Path, data: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", sparse("mpt"))
    options = ExportOptions(
        precision="int8", data=data, instructions="data", num_parity_steps=3, num_calibration_frames=8, force=True
    )
    bundle = export_checkpoint(checkpoint, tmp_path / "int8", options)
    assert bundle.manifest.words_blocks == EVERY - 1
    assert bundle.manifest.parity.metrics["min_feature_cosine"] > 0.99
    assert bundle.manifest.precision.blocks[f"decoder.layers.{EVERY - 1}.block"].matmuls["int8"] > 0


def test_a_policy_that_looks_before_its_first_block_has_none(tmp_path: Path) -> None:
    assert words_before_media(load_checkpoint(write_checkpoint(tmp_path / "checkpoint", preset("tiny"))).policy) is None
