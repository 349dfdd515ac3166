"""TensorRT takes every standard form strongly typed, without a flag, and keeps the weights as small as the form has them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from rfedge.contract import GraphContract, TensorSpec
from rfedge.errors import BackendUnavailableError
from rfedge.export.passes.graph_files import write_graph
from tests.export.float_graphs import draw, graph_of, make_bf16, make_fp16, make_int4_weight, make_int8_weight

pytestmark = pytest.mark.trt

node = helper.make_node
WIDTH, TOKENS = 256, 8
FORMS: dict[str, tuple[Callable[..., Any], float]] = {
    "fp16": (make_fp16, 2.0),
    "bf16": (make_bf16, 2.0),
    "int8-weight": (make_int8_weight, 1.0),
    "int4-weight": (make_int4_weight, 0.5),
}


@pytest.mark.parametrize(("make", "bytes_per_weight"), FORMS.values(), ids=FORMS)
def test_an_engine_for_sm89(make: Callable[..., Any], bytes_per_weight: float, tmp_path: Path) -> None:
    from rfedge.export.tensorrt.builder import build_engine
    from rfedge.export.tensorrt.options import BuilderSettings
    from rfedge.export.tensorrt.prepare import check_precisions, prepare_graph
    from rfedge.nvidia.tensorrt import load_tensorrt

    try:
        module = load_tensorrt("tensorrt-rtx")
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    nodes = [
        node("LayerNormalization", ["x", "scale"], ["normed"]),
        node("MatMul", ["normed", "up"], ["hidden"]),
        node("Gelu", ["hidden"], ["active"]),
        node("MatMul", ["active", "down"], ["update"]),
        node("Add", ["x", "update"], ["residual"]),
        node("Softmax", ["residual"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    constants = {"scale": draw(rng, WIDTH), "up": draw(rng, WIDTH, 4 * WIDTH), "down": draw(rng, 4 * WIDTH, WIDTH)}
    write_graph(graph_of(nodes, constants, {"x": (1, TOKENS, WIDTH)}, ["y"]), tmp_path / "fp32.onnx")
    make(tmp_path / "fp32.onnx", tmp_path / "form.onnx")
    graph, target = prepare_graph(tmp_path / "form.onnx"), module.ahead_of_time_target(89)
    check_precisions(graph, target)
    spec = {"dtype": "float32", "shape": (1, TOKENS, WIDTH), "axes": ("batch", "token", "width")}
    contract = GraphContract(inputs=(TensorSpec(name="x", **spec),), outputs=(TensorSpec(name="y", **spec),))
    built = build_engine(module, graph, tmp_path / "form.onnx", contract, target, BuilderSettings())
    num_weights = 8 * WIDTH * WIDTH
    assert 0.9 < built.weights_bytes / (bytes_per_weight * num_weights) < 1.3
