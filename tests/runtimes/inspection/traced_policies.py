"""Policies traced to graphs without the rest of an export: what the counts are compared on."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rfedge.bundle.artifact import Artifact, Bundle, Manifest, ParityRecord, PrecisionRecord
from rfedge.config import PolicyConfig, preset
from rfedge.contract import policy_contract
from rfedge.export.int8.options import PLAIN
from rfedge.export.passes.standard import apply_passes
from rfedge.export.quantize import quantize_int8
from rfedge.export.trace import trace_backbone, trace_head
from rfedge.model import build_policy


def changed_tiny(**changes: Any) -> PolicyConfig:
    return PolicyConfig.model_validate(preset("tiny").model_dump() | changes)


def traced_bundle(folder: Path, config: PolicyConfig) -> Bundle:
    """Return a bundle object over freshly traced fp32 graphs; it has no tokenizer and was proved by nobody."""
    policy = build_policy(config, seed=0)
    with torch.no_grad():
        for parameter in policy.parameters():
            # Untrained norms are all alike, and the exporter merges what is alike; trained ones are not.
            parameter.add_(torch.rand_like(parameter) * 0.01)
    contract = policy_contract(config)
    trace_backbone(policy, contract.backbone, folder / "backbone.onnx")
    trace_head(policy, contract.head, folder / "head.onnx")
    apply_passes(folder / "backbone.onnx", folder / "backbone.onnx")
    return _bundle(folder, config, "fp32")


def quantized_bundle(folder: Path, bundle: Bundle) -> Bundle:
    """Return the int8 form of a traced bundle, calibrated on noise: its numbers are useless, its graph is an int8 graph."""
    rng = np.random.default_rng(0)
    inputs = (bundle.contract.backbone.sample_inputs(rng) for _ in range(2))
    quantize_int8(bundle.path("backbone"), folder / "backbone.onnx", inputs, options=PLAIN)
    shutil.copy(bundle.path("head"), folder / "head.onnx")
    return _bundle(folder, bundle.policy, "int8")


def _bundle(folder: Path, config: PolicyConfig, precision: str) -> Bundle:
    artifacts = tuple(
        Artifact(path=f"{role}.onnx", role=role, sha256="0" * 64, size_bytes=(folder / f"{role}.onnx").stat().st_size)
        for role in ("backbone", "head")
    )
    manifest = Manifest(
        policy=config,
        contract=policy_contract(config),
        precision=PrecisionRecord(requested=precision, blocks={}),
        parity=ParityRecord(num_steps=0, inputs="none", metrics={}, thresholds={}, passed=True),
        source={},
        versions={},
        artifacts=artifacts,
    )
    return Bundle(folder, manifest)
