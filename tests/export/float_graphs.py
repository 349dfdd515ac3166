"""Graphs of a few nodes and traced ones, run in ONNX Runtime: the oracle of every pass and form is the graph before it."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rfedge.config import PolicyConfig, preset
from rfedge.contract import policy_contract
from rfedge.export.passes.standard import apply_passes
from rfedge.export.precisions.half import make_half
from rfedge.export.precisions.weight_only import make_weight_only
from rfedge.export.trace import trace_backbone, trace_head
from rfedge.model import build_policy

Array = npt.NDArray[Any]
make_fp16, make_bf16 = (partial(make_half, form) for form in ("fp16", "bf16"))
make_int8_weight, make_int4_weight = (partial(make_weight_only, bits) for bits in (8, 4))


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Array],
    inputs: Mapping[str, tuple[int, ...]],
    outputs: Sequence[str],
) -> ir.Model:
    """Build a float graph, opset 20; nodes get the names of their first outputs."""
    for node in nodes:
        node.name = node.name or f"node_{node.output[0]}"
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))


def run(model: ir.Model | Path, inputs: Mapping[str, Array]) -> list[Array]:
    """Run a graph in ONNX Runtime with all its optimizers."""
    session = open_session(model)
    results: list[Array] = session.run(None, {name: inputs[name] for name in (value.name for value in session.get_inputs())})
    return results


def open_session(
    model: ir.Model | Path, optimized: Path | None = None, *, plain: bool = False
) -> onnxruntime.InferenceSession:
    """Open a graph in ONNX Runtime: with all its optimizers, whose result goes to `optimized`, or plain, with none."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    source = str(model) if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def draw(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    return rng.standard_normal(shape).astype(np.float32)


def relative_rms(result: Array, reference: Array) -> float:
    return float(np.sqrt(((result - reference) ** 2).mean() / (reference**2).mean()))


def tiny_with_decoder(**changes: Any) -> PolicyConfig:
    """Return `tiny` with another decoder: `kind` and what it needs, or any other field."""
    config = preset("tiny").model_dump()
    if changes.get("kind", "mosaic_gpt") != "mosaic_gpt":
        for name in ("kind", "qk_norm", "alibi_bias_max"):
            config["decoder"].pop(name)
    config["decoder"].update(changes)
    return PolicyConfig.model_validate(config)


class TracedPolicy(NamedTuple):
    """Both halves of a random policy, and one frame's inputs of the backbone. Tests copy before they change a file."""

    config: PolicyConfig
    backbone: Path
    head: Path
    inputs: dict[str, Array]


_traced: dict[str, TracedPolicy] = {}


def traced_policy(folders: pytest.TempPathFactory, **changes: Any) -> TracedPolicy:
    """Trace `tiny_with_decoder(**changes)`, once for all test files: it takes seconds."""
    key = repr(sorted(changes.items()))
    if key not in _traced:
        config, folder = tiny_with_decoder(**changes), folders.mktemp("traced")
        contract, policy = policy_contract(config), build_policy(config, seed=0)
        trace_backbone(policy, contract.backbone, folder / "backbone.onnx")
        trace_head(policy, contract.head, folder / "head.onnx")
        inputs = contract.backbone.sample_inputs(np.random.default_rng(0))
        _traced[key] = TracedPolicy(config, folder / "backbone.onnx", folder / "head.onnx", inputs)
    return _traced[key]


def passed_policy(folders: pytest.TempPathFactory) -> TracedPolicy:
    """Return `tiny` after the passes, as the exporter hands it to the forms."""
    traced = traced_policy(folders)
    path = folders.mktemp("passed") / "backbone.onnx"
    apply_passes(traced.backbone, path)
    return traced._replace(backbone=path)


LLAMA = {"kind": "llama", "key_value_heads": 1, "mlp_width": 96}
GPT_NEOX = {"kind": "gpt_neox", "mlp_width": 96}
