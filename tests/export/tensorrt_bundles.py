"""Bundles of `tiny` in fp32, fp16 and int8 from one trace, and graphs of a few nodes, for the TensorRT builder."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from rfedge.bundle.artifact import Manifest, ParityRecord, PrecisionRecord, hash_file, write_bundle, write_manifest
from rfedge.bundle.engines import EngineTarget
from rfedge.config import PolicyConfig, preset
from rfedge.contract import GraphContract, TensorSpec, policy_contract
from rfedge.errors import BackendUnavailableError
from rfedge.export.quantize import quantize_int8
from rfedge.export.tensorrt.options import BuilderSettings, BuildOptions
from rfedge.export.tensorrt.pipeline import StageResult, build_bundle
from rfedge.export.trace import trace_backbone
from rfedge.model import build_policy
from rfedge.nvidia.tensorrt import TensorRt, load_tensorrt
from tests.runtimes.handmade_bundle import write_handmade_bundle

PRECISIONS = ("fp32", "fp16", "int8")


def load_rtx() -> TensorRt:
    """Load TensorRT for RTX, which builds without a GPU; skip the test where it is not installed."""
    try:
        return load_tensorrt("tensorrt-rtx")
    except BackendUnavailableError as error:
        pytest.skip(str(error))


def build_ahead(
    path: Path,
    *sms: int,
    stage: str = "backbone",
    overwrite: bool = False,
    workspace_mib: int = 0,
    text_lengths: tuple[int, ...] = (),
) -> list[StageResult]:
    """Build one stage for the compute capabilities `sms` (86 without any)."""
    options = BuildOptions(
        target="tensorrt-rtx",
        ahead_of_time=sms or (86,),
        stage=stage,
        overwrite=overwrite,
        settings=BuilderSettings(workspace_mib=workspace_mib),
        text_lengths=text_lengths,
    )
    return build_bundle(path, options)


def vouch_for(bundle: Path, name: str) -> None:
    """Write the present size and sha256 of a file that a test changed into the manifest."""
    document = json.loads((bundle / "manifest.json").read_bytes())
    del document["sha256"]
    manifest = Manifest.model_validate(document)
    changed = {"sha256": hash_file(bundle / name), "size_bytes": (bundle / name).stat().st_size}
    artifacts = (item.model_copy(update=changed) if item.path == name else item for item in manifest.artifacts)
    write_manifest(bundle, manifest.model_copy(update={"artifacts": tuple(artifacts)}))


def device(sm: int, version: str, module: str = "tensorrt-rtx") -> EngineTarget:
    """Return a machine with this GPU."""
    return EngineTarget(module=module, version=version, sm=sm, cuda="13.0", driver="580.1")


def write_tiny_bundles(folder: Path) -> dict[str, Path]:
    """Trace the backbone of `tiny` once and write it in every precision; int8 ranges come from random frames."""
    config = preset("tiny")
    contract = policy_contract(config)
    policy = build_policy(config, seed=0)
    graphs = folder / "graphs"
    graphs.mkdir(parents=True)
    trace_backbone(policy, contract.backbone, graphs / "fp32.onnx")
    write_handmade_bundle(graphs / "handmade", config)  # lends its head: these bundles are about the backbone
    rng = np.random.default_rng(0)
    quantize_int8(graphs / "fp32.onnx", graphs / "int8.onnx", (contract.backbone.sample_inputs(rng) for _ in range(2)))
    write_fp16(graphs / "fp32.onnx", graphs / "fp16.onnx")
    bundles = {}
    for precision in PRECISIONS:
        bundles[precision] = folder / precision
        write_graphs_as_bundle(
            folder / precision, config, graphs / f"{precision}.onnx", graphs / "handmade" / "head.onnx", precision
        )
    return bundles


def write_fp16(source: Path, target: Path) -> None:
    """Convert every float of the graph but its inputs and outputs to fp16."""
    model = OnnxModel(convert_float_to_float16(onnx.load(source), keep_io_types=True))
    model.topological_sort()  # the converter appends its casts at the end
    onnx.save(model.model, target)


def write_graphs_as_bundle(path: Path, config: PolicyConfig, backbone: Path, head: Path, precision: str) -> None:
    with write_bundle(path) as writer:
        shutil.copy(backbone, writer.add("backbone.onnx", "backbone"))
        shutil.copy(head, writer.add("head.onnx", "head"))
        writer.finish(
            Manifest(
                policy=config,
                contract=policy_contract(config),
                precision=PrecisionRecord(requested=precision, blocks={}),
                parity=ParityRecord(num_steps=0, inputs="none", metrics={}, thresholds={}, passed=True),
                source={"name": config.name},
                versions={},
            )
        )


def small_graph(
    nodes: Sequence[onnx.NodeProto],
    tensors: Sequence[onnx.TensorProto],
    *,
    width: int,
    module: str = "decoder.layers.7.mlp_up",
) -> onnx.ModelProto:
    """x, float32 (1, 32, width) -> y; every node carries the exporter's metadata of `module`."""
    for node in nodes:
        scopes = ["", module.split(".")[0], module, node.name]
        node.metadata_props.append(onnx.StringStringEntryProto(key="pkg.torch.onnx.name_scopes", value=str(scopes)))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 32, width]) for name in "xy"]
    graph = helper.make_graph(list(nodes), "graph", values[:1], values[1:], list(tensors))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def small_contract(width: int, *, tokens: int = 32) -> GraphContract:
    shape, axes = (1, tokens, width), ("batch", "token", "width")
    return GraphContract(
        inputs=(TensorSpec(name="x", dtype="float32", shape=shape, axes=axes),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=shape, axes=axes),),
    )
