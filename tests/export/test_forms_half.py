"""fp16 and bf16 on `tiny`: types, islands, errors of features and actions, and what a weight too large says."""

import shutil
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from rfedge.bundle.traces import compare_traces
from rfedge.contract import policy_contract
from rfedge.errors import ArtifactError, ConfigError, ExportError
from rfedge.export.parity import onnx_rollout
from rfedge.export.passes.graph_files import read_graph, write_graph
from rfedge.export.passes.graph_queries import block_of
from rfedge.export.precision_audit import effective_precisions, graph_matmuls
from rfedge.export.precisions.runs_here import write_emulation
from tests.errors import raises
from tests.export.float_graphs import (
    LLAMA,
    TracedPolicy,
    draw,
    graph_of,
    make_bf16,
    make_fp16,
    passed_policy,
    relative_rms,
    run,
    traced_policy,
)

node = helper.make_node
MAKERS = {"fp16": make_fp16, "bf16": make_bf16}
ELEMENT_TYPE = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TracedPolicy:
    return passed_policy(tmp_path_factory)


@pytest.fixture(scope="module")
def forms(tiny: TracedPolicy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("forms")
    return {name: make(tiny.backbone, folder / f"{name}.onnx")[0] for name, make in MAKERS.items()}


@pytest.mark.parametrize("form", MAKERS)
def test_every_matmul_with_a_weight_is_half_but_for_the_pixels(
    forms: dict[str, Path], tiny: TracedPolicy, form: str
) -> None:
    path, model = forms[form], onnx.load(forms[form])
    matmuls = {item.name: kind for item, kind in graph_matmuls(model)}
    assert Counter(matmuls.values()) == {form: 30, "fp32": 3}
    blocks = effective_precisions(path)
    assert {block for block, found in blocks.items() if found.kind == "fp32"} == {
        "preprocess_static",
        "preprocess_gripper",
        "vision",
    }
    assert blocks["vision.blocks.0"].kind == blocks["decoder.layers.1.cross_attention"].kind == form
    assert path.stat().st_size < 0.7 * tiny.backbone.stat().st_size
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    converted = [item for item in model.graph.node if matmuls.get(item.name) == form]
    assert {weights[item.input[1]] for item in converted} == {ELEMENT_TYPE[form]}


@pytest.mark.parametrize("form", MAKERS)
def test_the_graph_is_strongly_typed_and_its_islands_are_fp32(forms: dict[str, Path], form: str) -> None:
    """No value_info is trusted: types are inferred anew, and an operator that mixes them is an error."""
    model = onnx.load(forms[form])
    onnx.checker.check_model(model, full_check=True)
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in [*inferred.graph.value_info, *inferred.graph.output]}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    half, producers = ELEMENT_TYPE[form], {name: item for item in model.graph.node for name in item.output}
    seen = set()
    for item in model.graph.node:
        if item.op_type in ("LayerNormalization", "Softmax", "ReduceMax", "Where", "Floor", "Clip", "Conv"):
            assert half not in [types.get(name) for name in (*item.input, *item.output)], item.name
            seen.add(item.op_type)
        if item.op_type == "Softmax":
            logits = producers[item.input[0]]
            assert [types[name] for name in logits.output] == [TensorProto.FLOAT]
            assert "MatMul" in [logits.op_type, *(producers[name].op_type for name in logits.input if name in producers)]
        if item.op_type in ("Gelu", "Sigmoid"):
            assert types[item.output[0]] == half, item.name
            seen.add(item.op_type)
        if item.op_type == "Add" and not {*item.input} & {tensor.name for tensor in model.graph.initializer}:
            assert types[item.output[0]] == TensorProto.FLOAT, f"{item.name}: the residual stream"
    assert len(seen) == 9


@pytest.mark.parametrize("form", MAKERS)
def test_inputs_and_outputs_keep_the_contracts_types(forms: dict[str, Path], tiny: TracedPolicy, form: str) -> None:
    graph, contract = read_graph(forms[form]).graph, policy_contract(tiny.config).backbone
    for values, specs in ((graph.inputs, contract.inputs), (graph.outputs, contract.outputs)):
        assert {value.name: value.dtype.numpy() for value in values} == {spec.name: np.dtype(spec.dtype) for spec in specs}


@pytest.mark.parametrize(("form", "feature_bound", "action_bound"), [("fp16", 1e-3, 2e-3), ("bf16", 1e-2, 1e-2)])
def test_features_and_actions_stay_close_over_a_rollout(
    forms: dict[str, Path],
    tiny: TracedPolicy,
    tmp_path: Path,
    form: str,
    feature_bound: float,
    action_bound: float,
) -> None:
    """Six random frames with carried state; bf16 through its emulation, which rounds as a GPU would."""
    path = forms[form]
    if form == "bf16":
        write_emulation(path, tmp_path / "emulation.onnx")
        path = tmp_path / "emulation.onnx"
    rng = np.random.default_rng(1)
    episode = [policy_contract(tiny.config).backbone.sample_inputs(rng) for _ in range(6)]
    reference, result = (onnx_rollout(tiny.config, backbone, tiny.head, [episode]) for backbone in (tiny.backbone, path))
    metrics = compare_traces(reference, result)
    assert 0 < metrics["feature_relative_rms"] < feature_bound
    assert metrics["action_max_error"] < action_bound


def test_rotary_positions_and_rms_norm_are_islands_too(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    traced = traced_policy(tmp_path_factory, **LLAMA)
    make_fp16(traced.backbone, tmp_path / "fp16.onnx")
    model = read_graph(tmp_path / "fp16.onnx")
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert [kind for _, kind in graph_matmuls(onnx.load(tmp_path / "fp16.onnx"))].count("fp16") == 36
    for item in model.graph:
        if item.op_type in ("Pow", "ReduceMean", "Reciprocal", "Neg"):
            assert item.outputs[0].dtype == ir.DataType.FLOAT, item.name
    reference = run(traced.backbone, traced.inputs)[0]
    assert relative_rms(run(tmp_path / "fp16.onnx", traced.inputs)[0], reference) < 1e-3


def test_blocks_can_be_kept_in_fp32(tiny: TracedPolicy, tmp_path: Path) -> None:
    make_fp16(tiny.backbone, tmp_path / "fp16.onnx", keep_float=["vision.blocks.1", "resampler"])
    blocks = effective_precisions(tmp_path / "fp16.onnx")
    assert blocks["vision.blocks.0"].kind == "fp16"
    assert blocks["vision.blocks.1"].kind == blocks["resampler.layers.0"].kind == "fp32"
    for item in read_graph(tmp_path / "fp16.onnx").graph:
        if item.op_type != "Cast" and block_of(item) == "vision.blocks.1":
            assert {value.dtype for value in item.outputs} == {ir.DataType.FLOAT}, item.name
    with raises(ConfigError, "keep_float", got="'vision.block.1'", expected="... (did you mean 'vision.blocks.1'?)"):
        make_fp16(tiny.backbone, tmp_path / "other.onnx", keep_float=["vision.block.1"])
    assert [item.name for item in tmp_path.iterdir()] == ["fp16.onnx"]


# Numbers that a format does not hold


def matmul(weight: np.ndarray) -> ir.Model:
    return graph_of([node("MatMul", ["x", "weight"], ["y"])], {"weight": weight}, {"x": (2, 4)}, ["y"])


def with_one(value: float) -> np.ndarray:
    weight = draw(np.random.default_rng(0), 4, 4)
    weight[1, 2] = value
    return weight


@pytest.mark.parametrize(
    ("make", "value", "got", "limit", "remedy"),
    [
        (make_fp16, 70000, "70000", "65504 (fp16)", "Keep its block with"),
        (make_fp16, -1e30, "1e+30", "65504 (fp16)", "Keep its block with"),
        (make_fp16, np.nan, "nan", "65504 (fp16)", "Repair the checkpoint; no precision"),
        (make_bf16, np.inf, "inf", "3.38953e+38 (bf16)", "Repair the checkpoint; no precision"),
    ],
)
def test_a_weight_beyond_the_format_is_named_and_nothing_is_written(make, value, got, limit, remedy, tmp_path: Path) -> None:
    write_graph(matmul(with_one(value)), tmp_path / "fp32.onnx")
    before = (tmp_path / "fp32.onnx").read_bytes()
    for target in ("half.onnx", "fp32.onnx"):  # beside it and in its place
        expected = f"finite numbers up to {limit}"
        with raises(ExportError, "weight 'weight'", got=got, expected=expected, remedy=f"{remedy}..."):
            make(tmp_path / "fp32.onnx", tmp_path / target)
    assert [item.name for item in tmp_path.iterdir()] == ["fp32.onnx"]
    assert (tmp_path / "fp32.onnx").read_bytes() == before


def test_bf16_holds_what_fp16_does_not(tmp_path: Path) -> None:
    write_graph(matmul(with_one(70000)), tmp_path / "fp32.onnx")
    make_bf16(tmp_path / "fp32.onnx", tmp_path / "bf16.onnx")
    assert effective_precisions(tmp_path / "bf16.onnx")["unnamed"].kind == "bf16"


def test_an_output_that_a_matmul_makes_is_cast_back(tmp_path: Path) -> None:
    weight, x = with_one(1), {"x": draw(np.random.default_rng(1), 2, 4)}
    write_graph(matmul(weight), tmp_path / "fp32.onnx")
    make_fp16(tmp_path / "fp32.onnx", tmp_path / "fp32.onnx")  # in its place
    (result,) = run(tmp_path / "fp32.onnx", x)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, x["x"] @ weight, atol=0.02)


def test_the_emulation_rounds_as_bf16_does(tmp_path: Path) -> None:
    weight, x = draw(np.random.default_rng(0), 4, 4), {"x": draw(np.random.default_rng(1), 2, 4)}
    write_graph(matmul(weight), tmp_path / "fp32.onnx")
    make_bf16(tmp_path / "fp32.onnx", tmp_path / "bf16.onnx")
    write_emulation(tmp_path / "bf16.onnx", tmp_path / "emulation.onnx")

    def rounded(array: np.ndarray) -> np.ndarray:
        return array.astype(ml_dtypes.bfloat16).astype(np.float32)

    np.testing.assert_array_equal(run(tmp_path / "emulation.onnx", x)[0], rounded(rounded(x["x"]) @ rounded(weight)))


def test_a_form_is_made_from_fp32_alone(forms: dict[str, Path], tmp_path: Path) -> None:
    nodes = [node("DequantizeLinear", ["w", "scale"], ["weight"]), node("MatMul", ["x", "weight"], ["y"])]
    constants = {"w": np.ones((4, 4), np.int8), "scale": np.float32(1)}
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    write_graph(graph_of(nodes, arrays, {"x": (2, 4)}, ["y"]), tmp_path / "int8.onnx")
    with raises(ExportError, got="node node_weight (DequantizeLinear)", expected="a graph in fp32"):
        make_fp16(tmp_path / "int8.onnx", tmp_path / "fp16.onnx")
    shutil.copy(forms["fp16"], tmp_path / "half.onnx")
    with raises(ExportError, got="weight ... in FLOAT16", expected="a graph in fp32"):
        make_bf16(tmp_path / "half.onnx", tmp_path / "bf16.onnx")
    with raises(ArtifactError, "...absent.onnx"):
        make_fp16(tmp_path / "absent.onnx", tmp_path / "fp16.onnx")


def test_no_more_than_a_few_weights_are_in_memory_at_once(tmp_path: Path) -> None:
    import tracemalloc

    nodes, constants, value = [], {}, "x"
    for index in range(12):
        constants[f"w{index}"] = np.full((1024, 1024), 0.001, np.float32)
        nodes.append(node("MatMul", [value, f"w{index}"], [f"y{index}"]))
        value = f"y{index}"
    write_graph(graph_of(nodes, constants, {"x": (1, 1024)}, [value]), tmp_path / "fp32.onnx", inline_limit_bytes=0)
    constants.clear()
    seen: list[tuple[int, int]] = []
    tracemalloc.start()
    model = read_graph(tmp_path / "fp32.onnx")
    from rfedge.export.precisions.form_matmuls import choose_matmuls
    from rfedge.export.precisions.half import half_nodes, set_types

    set_types(model, half_nodes(model.graph, choose_matmuls(model.graph, [])), ir.DataType.FLOAT16)
    files = write_graph(
        model, tmp_path / "fp16.onnx", inline_limit_bytes=0, on_weight=lambda done, total: seen.append((done, total))
    )
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == [(done, 12) for done in range(1, 13)]
    assert files[1].stat().st_size == 12 * 1024 * 1024 * 2
    assert peak_bytes < 4 * 1024 * 1024 * 4, "twelve weights of 4 MiB"
