"""Token merging through the exporter: what PyTorch with the same merging gives, in one graph and in two, and engines."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from rfedge.bundle.artifact import Bundle
from rfedge.contract import policy_contract
from rfedge.errors import ConfigError
from rfedge.export.options import ExportOptions
from rfedge.export.parity import backbone_call
from rfedge.export.pipeline import check_export, export_checkpoint
from rfedge.export.thresholds import FROM_STRICTEST, THRESHOLDS
from rfedge.model import load_checkpoint
from tests.errors import raises
from tests.export.tensorrt_bundles import build_ahead, load_rtx
from tests.export.test_tensorrt_parser_rules import assert_parses
from tests.tolerances import assert_same_in_fp32, backbone_terms

MERGED = 3
OPTIONS = ExportOptions(merge_tokens=MERGED, num_parity_steps=4, force=True)


@pytest.fixture(scope="module")
def int8(checkpoints: dict[str, Path], demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    options = replace(OPTIONS, precision="int8", data=demonstrations, num_calibration_frames=4)
    return export_checkpoint(checkpoints["carry"], tmp_path_factory.mktemp("merged") / "int8", options)


@pytest.mark.parametrize("stages", ["one", pytest.param("two", marks=pytest.mark.slow)])
def test_the_graph_computes_what_pytorch_does_with_the_same_merging(
    checkpoints: dict[str, Path], tmp_path: Path, stages: str
) -> None:
    bundle = export_checkpoint(checkpoints["carry"], tmp_path / "bundle", replace(OPTIONS, stages=stages))
    policy = load_checkpoint(checkpoints["carry"]).policy
    inputs = policy_contract(policy.config).backbone.sample_inputs(np.random.default_rng(0))
    policy.backbone.vision.merge_tokens = MERGED
    with torch.inference_mode():
        expected = policy.backbone(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    actual = backbone_call(policy.config, list(bundle.backbone_graphs(for_cpu=True).values()))(inputs)["feature"]
    assert_same_in_fp32(actual, expected, backbone_terms(policy.config))
    for graph in bundle.backbone_graphs(for_cpu=False).values():
        assert_parses(graph, floats=False)


def test_the_manifest_says_so_and_the_proof_is_against_no_merging(int8: Bundle) -> None:
    parity = int8.manifest.parity
    assert int8.manifest.merge_tokens == MERGED
    assert f"{MERGED} tokens merged in each layer, none in PyTorch" in parity.inputs
    assert parity.thresholds == THRESHOLDS[FROM_STRICTEST[-1]]
    assert parity.metrics["feature_relative_rms"] > 1e-3
    nodes = onnx.load(int8.path("backbone-cpu"), load_external_data=False).graph.node
    blocks = int8.policy.vision.layers
    assert sum(node.op_type == "TopK" for node in nodes) == 2 * blocks
    if any(node.op_type == "Attention" for node in nodes):  # onnxruntime 1.24 and later
        assert not any(node.op_type == "Softmax" for node in nodes)


@pytest.mark.trt
def test_engines_are_built_of_it_ahead_of_time(int8: Bundle) -> None:
    load_rtx()
    (result,) = build_ahead(int8.root)
    assert result.audit.missed == ()


def test_more_than_half_of_the_patches_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with raises(ConfigError, "--merge-tokens", got=9, expected="at most 8, half of the patches of an image"):
        check_export(checkpoints["carry"], tmp_path / "bundle", replace(OPTIONS, merge_tokens=9))
