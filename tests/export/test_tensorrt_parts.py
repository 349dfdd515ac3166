"""The parts of the TensorRT builder that need no TensorRT: graph changes, texts about engines, targets, the driver."""

import ctypes
import json
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rfedge.bundle.engines import EngineKey, EngineTarget
from rfedge.errors import BackendUnavailableError, ConfigError
from rfedge.export.tensorrt.audit import audit_built
from rfedge.export.tensorrt.builder import BuiltEngine
from rfedge.export.tensorrt.engine_layers import layers_from_inspector, layers_from_log
from rfedge.export.tensorrt.network import BuildLog, ModuleNames, PhaseFraction, name_failure
from rfedge.export.tensorrt.prepare import cast_bytes_first
from rfedge.nvidia.device import read_cuda_device
from rfedge.nvidia.tensorrt import TensorRt, load_tensorrt, parse_compute_capabilities
from tests.errors import raises
from tests.export.tensorrt_bundles import small_graph

WIDTH = 64


def run(model: onnx.ModelProto, inputs: dict[str, Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, inputs)[0]


def packed_graph(*, scale_per_column: bool = True) -> onnx.ModelProto:
    """x -> Q/DQ -> int8 MatMul 3 times as wide -> bias -> three parts -> part 0 * part 1 + part 2."""
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.01, 0.02, 3 * WIDTH if scale_per_column else ()).astype(np.float32)
    tensors = {
        "scale": np.array(0.03, np.float32),
        "zero": np.array(0, np.int8),
        "weight": rng.integers(-127, 128, (WIDTH, 3 * WIDTH), np.int8),
        "weight_scale": scales,
        "weight_zero": np.zeros(scales.shape, np.int8),
        "bias": rng.standard_normal(3 * WIDTH).astype(np.float32),
    }
    axis = {"axis": 1} if scale_per_column else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], name="weight_dq", **axis),
        helper.make_node("MatMul", ["dq", "w"], ["out"], name="qkv"),
        helper.make_node("Add", ["out", "bias"], ["biased"], name="qkv_bias"),
        helper.make_node("Split", ["biased"], ["a", "b", "c"], name="chunk", axis=-1, num_outputs=3),
        helper.make_node("Mul", ["a", "b"], ["ab"], name="mul"),
        helper.make_node("Add", ["ab", "c"], ["y"], name="sum"),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    return small_graph(nodes, initializers, width=WIDTH, module="vision.blocks.0.qkv")


def test_bytes_are_cast_before_they_are_transposed() -> None:
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], name="permute", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["y"], name="cast", to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 5, 6, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 5, 6])],
        value_info=[helper.make_tensor_value_info("planes", TensorProto.UINT8, [1, 3, 5, 6])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    image = np.random.default_rng(0).integers(0, 256, (1, 5, 6, 3), np.uint8)
    expected = run(model, {"image": image})
    changed = ir.from_proto(model)
    assert cast_bytes_first(changed.graph) == 1
    model = ir.to_proto(changed)
    assert [(node.op_type, node.name) for node in model.graph.node] == [("Cast", "cast"), ("Transpose", "permute")]
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model, {"image": image}), expected)
    assert cast_bytes_first(changed.graph) == 0


# One line of each text about engines, as the modules write them.
LOG = """Layers:
Name: __myl_LN_0, LayerType: kgen, Inputs: [ { Name: x, Dimensions: [32,64], Strides: [64,1], StrideOrder: [1,0], \
Datatype: Float, Format: (Linear) Row major linear format }], Constants: [], Outputs: [ { Name: q, Dimensions: [32,64], \
Strides: [64,1], StrideOrder: [1,0], Datatype: Int8, Format: (Linear) Row major linear format }], TacticName: __myl_LN_0x1, \
StreamId: 0, Metadata: [ONNX Layer: quantize]
Name: gemm_1, LayerType: gemm, Inputs: [ { Name: q, Dimensions: [32,64], Strides: [64,1], StrideOrder: [1,0], \
Datatype: Int8, Format: (Linear) Row major linear format }], \
Constants: [ { Name: w, Dimensions: [64,192], Strides: [192,1], \
StrideOrder: [1,0], Datatype: Int8, Format: (Linear) Row major linear format }], Outputs: [ { Name: out, \
Dimensions: [32,192], Strides: [192,1], StrideOrder: [1,0], Datatype: Float, Format: (Linear) Row major linear format }], \
TacticName: , StreamId: 0, Metadata: [ONNX Layer: qkv][ONNX Layer: weight_dq]
Name: sync, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, EventId: 1, Metadata: """

INSPECTOR_10 = {
    "Layers": [
        {
            "Name": "gemm_1",
            "LayerType": "gemm",
            "Inputs": [{"Name": "q", "Dimensions": [32, 64], "Format/Datatype": "Row major Int8 format"}],
            "Weights": {"Type": "Int8", "Count": 12288},
            "Outputs": [{"Name": "out", "Dimensions": [32, 192], "Format/Datatype": "Row major linear FP32"}],
            "Metadata": "[ONNX Layer: qkv]\u001e[ONNX Layer: weight_dq]",
        }
    ],
    "Bindings": ["x", "y"],
}
INSPECTOR_11 = {
    "Layers": [
        {
            "Name": "gemm_1",
            "LayerType": "gemm",
            "Inputs": [{"Name": "q", "Dimensions": [32, 64], "Datatype": "Int8", "Format": "Linear"}],
            "Constants": [{"Name": "w", "Dimensions": [64, 192], "Datatype": "Half", "Format": "Linear"}],
            "Outputs": [{"Name": "out", "Dimensions": [32, 192], "Datatype": "Half", "Format": "Linear"}],
            "Metadata": "[ONNX Layer: qkv]",
        }
    ],
    "I/O Tensors": ["x", "y"],
}


def test_all_three_texts_about_an_engine_are_read() -> None:
    logged = layers_from_log(LOG)
    assert [(layer.name, layer.kind) for layer in logged] == [("__myl_LN_0", "kgen"), ("gemm_1", "gemm"), ("sync", "signal")]
    assert logged[1].onnx_nodes == ("qkv", "weight_dq")
    assert [(item.precision, item.shape) for item in (*logged[1].inputs, *logged[1].constants)] == [
        ("int8", (32, 64)),
        ("int8", (64, 192)),
    ]
    assert [item.precision for item in (*logged[0].inputs, *logged[0].constants, *logged[0].outputs)] == ["fp32", "int8"]
    ten, eleven = (layers_from_inspector(json.dumps(text))[0] for text in (INSPECTOR_10, INSPECTOR_11))
    assert ten.onnx_nodes == ("qkv", "weight_dq")
    assert [item.precision for item in (*ten.inputs, *ten.constants, *ten.outputs)] == ["int8", "int8", "fp32"]
    assert [item.precision for item in (*eleven.inputs, *eleven.constants, *eleven.outputs)] == ["int8", "fp16", "fp16"]
    assert layers_from_inspector('{"Layers": ["gemm_1"]}') == [], "names only: built without detailed profiling"
    assert layers_from_log("") == []


def test_the_audit_believes_the_engine_and_not_the_graph() -> None:
    def audit(text: dict[str, Any], *, engine_weights_bytes: int = 100) -> Any:
        layers = layers_from_inspector(json.dumps(text))
        built = BuiltEngine(b"plan", layers, "engine inspector", None, {"INT8": 100}, engine_weights_bytes, 0, 0.0)
        return audit_built(packed_graph(), built)

    good, bad = audit(INSPECTOR_10), audit(INSPECTOR_11, engine_weights_bytes=400)
    assert good.matmuls[0].asked == "int8"
    assert good.precisions == {"int8": 1}
    assert good.missed == ()
    assert not good.weights_grew
    assert [matmul.module for matmul in bad.missed] == ["vision.blocks.0.qkv"]
    assert bad.precisions == {"fp16": 1}
    assert bad.weights_grew, "the engine holds four times the graph's weights"
    silent = audit({"Layers": []})
    assert silent.precisions == {"unknown": 1}
    assert silent.matmuls[0].reason == "not named by the engine inspector: folded, or merged into a neighbour"


def test_a_failure_of_the_builder_leads_with_the_node_it_names() -> None:
    names = ModuleNames(packed_graph())
    errors = [
        "Unexpected exception",
        "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any implementation for node qkv.)",
    ]
    text = name_failure(errors, names)
    assert text.startswith("node qkv (MatMul) of PyTorch module vision.blocks.0.qkv: ")
    assert text.endswith("Could not find any implementation for node qkv")
    assert name_failure([], names) == "a failure without a reason"


def test_phases_inside_phases_add_up_and_never_fall() -> None:
    fraction = PhaseFraction()
    fraction.start("all", None, 2)
    fraction.start("first", "all", 4)
    seen = []
    for step in range(4):
        fraction.step("first", step)
        seen.append(fraction.fraction)
    assert seen == [0.125, 0.25, 0.375, 0.5]
    fraction.finish("first")
    fraction.step("all", 0)
    fraction.start("second", "all", 10)
    assert fraction.fraction == 0.5
    fraction.finish("second")
    fraction.step("all", 1)
    fraction.finish("all")
    fraction.start("another root", None, 8)
    assert fraction.fraction == 1.0


def test_memory_figures_are_read_from_the_log() -> None:
    log = BuildLog()
    for line in ("Total Activation Memory: 17204224 bytes", "Total Weights Memory: 18616068 bytes", "Layers:\nName: a"):
        log.add_info(line)
    assert (log.weights_bytes, log.activations_bytes, log.layers_text) == (18616068, 17204224, "Layers:\nName: a")


def test_a_target_says_why_it_is_not_this_device() -> None:
    orin = EngineTarget(module="tensorrt", version="10.3.0", sm=87, cuda="12.6", driver="540.4.0")
    assert orin.fingerprint == "tensorrt-10.3.0-sm87-cuda12.6-driver540.4.0"
    assert orin.reason_not_on(orin) is None
    updated = orin.model_copy(update={"driver": "580.1.0"})
    assert orin.reason_not_on(updated) == "built under driver 540.4.0, this is 580.1.0"
    assert orin.reason_not_on(orin.model_copy(update={"cuda": "13.0"})) == "built under cuda 12.6, this is 13.0"
    ahead = EngineTarget(module="tensorrt-rtx", version="1.7.1", sm=86, ahead_of_time=True)
    assert ahead.fingerprint == "tensorrt-rtx-1.7.1-sm86-aot"
    here = ahead.model_copy(update={"ahead_of_time": False, "cuda": "13.0", "driver": "580.1.0"})
    assert ahead.reason_not_on(here) is None
    key = EngineKey(graph_sha256="a", weights_sha256={}, target=orin, builder={"tf32": False})
    assert key.reason_stale(key) is None
    assert key.reason_stale(key.model_copy(update={"weights_sha256": {"backbone.onnx.data": "b"}})) == "the weights changed"
    assert (
        key.reason_stale(key.model_copy(update={"builder": {"tf32": True}}))
        == "builder settings changed: tf32 False -> True"
    )


def test_compute_capabilities_are_read_and_mistakes_named() -> None:
    assert parse_compute_capabilities("sm86, SM89,sm_120") == (86, 89, 120)
    for text in ("", "86", "sm86,sm86", "sm8.6", "sm86 sm89"):
        with raises(ConfigError, "--aot", expected="compute capabilities such as sm86,sm89"):
            parse_compute_capabilities(text)
    standard = TensorRt(name="tensorrt", trt=object(), version="10.3.0")
    with raises(ConfigError, got="sm86", expected="no --aot with tensorrt", remedy="Pass --target tensorrt-rtx..."):
        standard.ahead_of_time_target(86)


def test_a_module_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with raises(BackendUnavailableError, "target tensorrt", remedy="On Jetson it comes with JetPack..."):
        load_tensorrt("tensorrt")
    with raises(ConfigError, "--target", got="'tensorr'", expected="...did you mean 'tensorrt..."):
        load_tensorrt("tensorr")


class Driver:
    """libcuda's functions over one made-up GPU, with the C calling convention."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def cuInit(self, flags: Any) -> int:  # noqa: N802 - CUDA's names
        return self.status

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 12060
        return 0

    def cuDeviceGet(self, device: Any, ordinal: Any) -> int:  # noqa: N802
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: Any, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 7}[attribute.value]
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:  # noqa: N802
        size._obj.value = 8 << 30
        return 0

    def cuDeviceGetName(self, name: Any, length: Any, device: Any) -> int:  # noqa: N802
        name.value = b"Orin"
        return 0

    def cuGetErrorName(self, status: Any, name: Any) -> int:  # noqa: N802
        name._obj.value = {100: b"CUDA_ERROR_NO_DEVICE"}.get(status.value)
        return 0


def test_the_driver_tells_which_gpu_this_is() -> None:
    device = read_cuda_device(library=Driver())
    assert (device.name, device.sm, device.cuda, device.memory_bytes) == ("Orin", 87, "12.6", 8 << 30)
    with raises(BackendUnavailableError, got="cuInit with CUDA_ERROR_NO_DEVICE", remedy="...nvidia-smi..."):
        read_cuda_device(library=Driver(status=100))
    with raises(BackendUnavailableError, got="cuInit with status 101"):
        read_cuda_device(library=Driver(status=101))
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with raises(BackendUnavailableError, got="no libcuda.so.1", remedy="...ahead of time with --target tensorrt-rtx..."):
            read_cuda_device()
