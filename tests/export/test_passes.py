"""Each pass on a graph of a few nodes, before and after in ONNX Runtime, and on the traced backbone of `tiny`."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from rfedge.config import preset
from rfedge.export.passes.compact_attention import CompactAttention
from rfedge.export.passes.drop_dead import DropDead
from rfedge.export.passes.fold_gates import FoldGates
from rfedge.export.passes.fold_normalisation import FoldNormalisation
from rfedge.export.passes.fusible_rms_norm import FusibleRMSNorm
from rfedge.export.passes.graph_files import read_graph
from rfedge.export.passes.graph_pass import GraphPass, weight_bytes
from rfedge.export.passes.graph_queries import block_of, is_weight_matmul
from rfedge.export.passes.slim import Slim
from rfedge.export.passes.standard import apply_passes, standard_passes
from tests.export.float_graphs import (
    GPT_NEOX,
    LLAMA,
    Array,
    TracedPolicy,
    draw,
    graph_of,
    op_types,
    open_session,
    run,
    traced_policy,
)
from tests.tolerances import assert_same_in_fp32, backbone_terms

node = helper.make_node
TERMS = backbone_terms(preset("tiny"))  # of the largest graph here
SCOPES = "pkg.torch.onnx.name_scopes"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TracedPolicy:
    return traced_policy(tmp_path_factory)


def apply(graph_pass: GraphPass, model: ir.Model, inputs: dict[str, Array]) -> tuple[str, ...]:
    """Run the pass, compare the outputs, and run it again, which must change nothing; return the changes."""
    before = run(model, inputs)
    graph_pass(model)
    changes = graph_pass.changes
    for expected, result in zip(before, run(model, inputs), strict=True):
        assert_same_in_fp32(result, expected, TERMS)
    graph_pass(model)
    assert graph_pass.changes == ()
    return changes


# Gates


def gated(order: str, *, tanh: bool = True, bias: bool = False, gate_shape: tuple[int, ...] = (1,)) -> ir.Model:
    nodes = [node("Tanh", ["gate"], ["factor"])] if tanh else []
    nodes.append(node("MatMul", ["x", "weight"], ["MatMul"]))
    if bias:
        nodes.append(node("Add", ["offset", "MatMul"], ["biased"]))
    operands = ["factor" if tanh else "gate", "biased" if bias else "MatMul"]
    nodes += [node("Mul", operands if order == "gate first" else operands[::-1], ["scaled"])]
    nodes.append(node("Add", ["x", "scaled"], ["y"]))
    rng = np.random.default_rng(0)
    constants = {"weight": draw(rng, 6, 6), "gate": draw(rng, *gate_shape)} | ({"offset": draw(rng, 6)} if bias else {})
    return graph_of(nodes, constants, {"x": (2, 3, 6)}, ["y"])


X = {"x": draw(np.random.default_rng(1), 2, 3, 6)}


@pytest.mark.parametrize("order", ["gate first", "gate second"])
@pytest.mark.parametrize("tanh", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_gate_goes_into_the_projection_and_its_bias(order: str, tanh: bool, bias: bool) -> None:
    model = gated(order, tanh=tanh, bias=bias)
    (change,) = apply(FoldGates(), model, X)
    assert change.startswith("node_scaled: gate ")
    assert change.endswith("into node_MatMul")
    assert op_types(model) == (["MatMul", "Add", "Add"] if bias else ["MatMul", "Add"])
    DropDead()(model)
    assert len(model.graph.initializers) == 1 + bias


def test_a_gate_that_leaves_the_graph_keeps_the_outputs_name() -> None:
    nodes = [node("Gemm", ["x", "weight", "offset"], ["MatMul"], transB=1), node("Mul", ["MatMul", "gate"], ["y"])]
    rng = np.random.default_rng(0)
    constants = {"weight": draw(rng, 3, 6), "offset": draw(rng, 3), "gate": np.float32(0.3)}
    model = graph_of(nodes, {name: np.asarray(value) for name, value in constants.items()}, {"x": (2, 6)}, ["y"])
    apply(FoldGates(), model, {"x": draw(rng, 2, 6)})
    assert op_types(model) == ["Gemm"]
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_two_gates_on_one_weight_make_two_weights() -> None:
    nodes = [
        node("MatMul", ["x", "weight"], ["a"]),
        node("Mul", ["a", "gate_a"], ["y"]),
        node("MatMul", ["x", "weight"], ["b"]),
        node("Mul", ["gate_b", "b"], ["z"]),
    ]
    constants = {"weight": draw(np.random.default_rng(0), 6, 6), "gate_a": np.float32([2]), "gate_b": np.float32([-3])}
    model = graph_of(nodes, constants, {"x": (2, 3, 6)}, ["y", "z"])
    assert len(apply(FoldGates(), model, X)) == 2


def test_what_is_no_gate_stays() -> None:
    """A MatMul that someone else reads too, one number a channel, and a gate that adds an axis."""
    assert apply(FoldGates(), gated("gate first", tanh=False, gate_shape=(6,)), X) == ()
    assert apply(FoldGates(), gated("gate first", tanh=False, gate_shape=(1, 1, 1, 1)), X) == ()
    shared = [
        node("MatMul", ["x", "weight"], ["MatMul"]),
        node("Mul", ["MatMul", "gate"], ["y"]),
        node("Sigmoid", ["MatMul"], ["z"]),
    ]
    constants = {"weight": draw(np.random.default_rng(0), 6, 6), "gate": np.float32([1.702])}
    assert apply(FoldGates(), graph_of(shared, constants, {"x": (2, 3, 6)}, ["y", "z"]), X) == ()


# Normalisation

IMAGES = {name: np.random.default_rng(2).integers(0, 256, (1, 3, 8, 8)).astype(np.float32) for name in ("left", "right")}
MEAN, STD = np.float32([116, 112, 99]).reshape(3, 1, 1), np.float32([68, 66, 70]).reshape(3, 1, 1)


def cameras(*, padding: int = 0, second_mean: Array = MEAN, bias: bool = False) -> ir.Model:
    nodes = [
        node("Sub", ["left", "mean"], ["left_centred"]),
        node("Div", ["left_centred", "std"], ["left_normal"]),
        node("Sub", ["right", "second_mean"], ["right_centred"]),
        node("Div", ["right_centred", "std"], ["right_normal"]),
        node("Concat", ["left_normal", "right_normal"], ["images"], axis=0),
        node("Conv", ["images", "weight", *(["offset"] if bias else [])], ["y"], strides=[4, 4], pads=[padding] * 4),
    ]
    rng = np.random.default_rng(3)
    constants = {"mean": MEAN, "second_mean": second_mean, "std": STD, "weight": draw(rng, 5, 3, 4, 4)}
    constants |= {"offset": draw(rng, 5)} if bias else {}
    return graph_of(nodes, constants, {"left": (1, 3, 8, 8), "right": (1, 3, 8, 8)}, ["y"])


@pytest.mark.parametrize("bias", [True, False])
def test_the_normalisation_of_both_cameras_goes_into_the_convolution(bias: bool) -> None:
    model = cameras(bias=bias)
    assert apply(FoldNormalisation(), model, IMAGES) == ("node_y: 4 nodes of 2 image(s) into its weight and bias",)
    assert op_types(model) == ["Concat", "Conv"]


def test_with_padding_or_with_two_normalisations_nothing_is_folded() -> None:
    """Padding puts zeros where the normalisation would have put -mean / std."""
    assert apply(FoldNormalisation(), cameras(padding=1), IMAGES) == ()
    assert apply(FoldNormalisation(), cameras(second_mean=MEAN + 1), IMAGES) == ()


def test_a_normalised_image_that_someone_else_reads_stays() -> None:
    nodes = [
        node("Mul", ["left", "std"], ["normal"]),
        node("Conv", ["normal", "weight"], ["y"]),
        node("Neg", ["normal"], ["z"]),
    ]
    constants = {"std": STD, "weight": draw(np.random.default_rng(3), 5, 3, 4, 4)}
    model = graph_of(nodes, constants, {"left": (1, 3, 8, 8)}, ["y", "z"])
    assert apply(FoldNormalisation(), model, IMAGES) == ()


# Dead weight


def test_dead_nodes_and_their_weights_go() -> None:
    nodes = [
        node("MatMul", ["x", "weight"], ["y"]),
        node("MatMul", ["x", "dead_weight"], ["dead"]),
        node("Relu", ["dead"], ["deader"]),
    ]
    rng = np.random.default_rng(0)
    model = graph_of(
        nodes, {"weight": draw(rng, 6, 6), "dead_weight": draw(rng, 6, 6)}, {"x": (2, 3, 6), "unread": (1,)}, ["y"]
    )
    changes = apply(DropDead(), model, {**X, "unread": np.zeros(1, np.float32)})
    assert changes == ("node_dead (MatMul)", "node_deader (Relu)", "initializer dead_weight")
    assert weight_bytes(model.graph) == 6 * 6 * 4
    assert [value.name for value in model.graph.inputs] == ["x", "unread"], "the inputs are the contract"


def test_nothing_of_the_last_block_is_left_where_its_input_is_the_feature(
    tiny: TracedPolicy, tmp_path_factory: pytest.TempPathFactory
) -> None:
    traced = traced_policy(tmp_path_factory, feature="last_block_input")
    model = read_graph(traced.backbone)
    apply(DropDead(), model, traced.inputs)
    blocks = {block_of(item) for item in model.graph}
    assert "decoder.layers.0.block" in blocks
    assert not [block for block in blocks if block.startswith("decoder.layers.1")]
    assert not [item for item in model.graph if "decoder.ln_f" in item.metadata_props.get(SCOPES, "")]
    whole = weight_bytes(read_graph(tiny.backbone).graph)
    # packed qkv, output, two feed-forwards; q, k|v, output and feed-forward of the cross-attention
    block, cross_attention = 64 * (3 * 64 + 64 + 2 * 256), 64 * (64 + 2 * 64 + 64 + 2 * 256)
    assert weight_bytes(model.graph) <= whole - 4 * (block + cross_attention)


# Slim


def test_constants_are_computed_and_what_does_nothing_goes() -> None:
    nodes = [
        node("LayerNormalization", ["latents", "scale"], ["normed"]),
        node("MatMul", ["normed", "weight"], ["query"]),
        node("Identity", ["x"], ["same"]),
        node("Reshape", ["same", "flat"], ["flattened"]),
        node("Reshape", ["flattened", "shape"], ["shaped"]),
        node("Cast", ["shaped"], ["cast"], to=1),
        node("Transpose", ["cast"], ["in_order"], perm=[0, 1, 2]),
        node("Add", ["in_order", "query"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "latents": draw(rng, 3, 6),
        "scale": draw(rng, 6),
        "weight": draw(rng, 6, 6),
        "flat": np.int64([-1]),
        "shape": np.int64([2, 3, 6]),
    }
    model = graph_of(nodes, constants, {"x": (2, 3, 6)}, ["y"])
    changes = apply(Slim(), model, X)
    assert op_types(model) == ["Add"]
    assert "node_normed (LayerNormalization) computed" in changes
    assert "node_query (MatMul) computed" in changes
    assert "weight" not in model.graph.initializers


def test_a_constant_that_would_grow_is_left_to_the_runtime() -> None:
    nodes = [node("Expand", ["small", "shape"], ["large"]), node("Add", ["x", "large"], ["y"])]
    constants = {"small": np.float32([1]), "shape": np.int64([64, 64])}
    model = graph_of(nodes, constants, {"x": (64, 64)}, ["y"])
    assert apply(Slim(), model, {"x": draw(np.random.default_rng(0), 64, 64)}) == ()


def test_rows_put_behind_each_other_are_a_reshape() -> None:
    nodes = [node("Split", ["x"], ["static", "gripper"], axis=0, num_outputs=2)]
    nodes.append(node("Concat", ["static", "gripper"], ["y"], axis=1))
    model = graph_of(nodes, {}, {"x": (2, 3, 4)}, ["y"])
    x = draw(np.random.default_rng(0), 2, 3, 4)
    (expected,) = run(model, {"x": x})
    assert apply(Slim(), model, {"x": x}) == ("node_y (Concat) and node_static (Split) become a Reshape",)
    assert op_types(model) == ["Reshape"]
    np.testing.assert_array_equal(run(model, {"x": x})[0], expected)


# Attention and RMSNorm


def test_attention_as_the_exporter_writes_it_becomes_compact() -> None:
    nodes = [
        node("Reshape", ["k", "three"], ["k_3"]),
        node("Transpose", ["k_3"], ["k_t"], perm=[0, 2, 1]),
        node("Reshape", ["k_t", "four"], ["k_4"]),
        node("Mul", ["q", "root"], ["q_scaled"]),
        node("Mul", ["k_4", "root"], ["k_scaled"]),
        node("MatMul", ["q_scaled", "k_scaled"], ["y"]),
    ]
    constants = {"three": np.int64([-1, 5, 8]), "four": np.int64([1, 2, 8, 5]), "root": np.float32([8**-0.25])}
    model = graph_of(nodes, constants, {"q": (1, 2, 3, 8), "k": (1, 2, 5, 8)}, ["y"])
    rng = np.random.default_rng(0)
    apply(CompactAttention(), model, {"q": draw(rng, 1, 2, 3, 8), "k": draw(rng, 1, 2, 5, 8)})
    assert sorted(op_types(model)) == ["MatMul", "Mul", "Transpose"]


def rms_norm() -> ir.Model:
    nodes = [
        node("Pow", ["x", "two"], ["squared"]),
        node("ReduceMean", ["squared", "last"], ["mean"], keepdims=1),
        node("Add", ["mean", "epsilon"], ["shifted"]),
        node("Sqrt", ["shifted"], ["root"]),
        node("Reciprocal", ["root"], ["inverse"]),
        node("Mul", ["x", "inverse"], ["normal"]),
        node("Mul", ["scale", "normal"], ["y"]),
    ]
    constants = {
        "two": np.float32(2),
        "last": np.int64([-1]),
        "epsilon": np.float32(1e-6),
        "scale": np.float32([1, 2, 3, 4, 5, 6]),
    }
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    return graph_of(nodes, arrays, {"x": (2, 3, 6)}, ["y"])


def test_onnx_runtime_fuses_rms_norm_only_after_the_pass(tmp_path: Path) -> None:
    def fused(model: ir.Model, name: str) -> list[str]:
        open_session(model, optimized=tmp_path / name)
        return op_types(read_graph(tmp_path / name))

    model = rms_norm()
    assert "SimplifiedLayerNormalization" not in fused(model, "before.onnx")
    assert apply(FusibleRMSNorm(), model, X) == ("node_normal: divides by the root",)
    assert fused(model, "after.onnx") == ["SimplifiedLayerNormalization"]


# What all passes promise


@pytest.mark.parametrize("graph_pass", [item for item in standard_passes() if not isinstance(item, DropDead)])
def test_a_quantized_graph_is_refused(graph_pass: GraphPass) -> None:
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"]),
        node("DequantizeLinear", ["x_q", "scale", "zero"], ["y"]),
    ]
    constants = {"scale": np.float32(0.1), "zero": np.int8(0)}
    model = graph_of(nodes, {name: np.asarray(value) for name, value in constants.items()}, {"x": (2, 3, 6)}, ["y"])
    words = rf"pass {graph_pass.name}: got node node_x_q \(QuantizeLinear\), expected a graph before quantization"
    with pytest.raises(ir.passes.PreconditionError, match=words):
        graph_pass(model)


BROKEN = [
    (FoldGates, gated("gate first"), "pass fold-gates: node_factor .Tanh. is still a gate"),
    (FoldGates, gated("gate first", tanh=False), "pass fold-gates: node_scaled .Mul. is still a gate"),
    (FoldNormalisation, cameras(), "pass fold-normalisation: node_y .Conv. still reads a normalisation"),
    (FusibleRMSNorm, rms_norm(), "pass fusible-rms-norm: node_normal .Mul. still multiplies by a reciprocal"),
]


@pytest.mark.parametrize(("kind", "model", "words"), BROKEN)
def test_a_pass_that_does_not_do_its_work_is_found_out(kind: type[GraphPass], model: ir.Model, words: str) -> None:
    class Idle(kind):  # type: ignore[valid-type, misc]
        def rewrite(self, model: ir.Model) -> list[str]:
            return []

    with pytest.raises(ir.passes.PostconditionError, match=words):
        Idle()(model)


def test_the_passes_on_tiny_one_after_the_other(tiny: TracedPolicy) -> None:
    path, inputs = tiny.backbone, tiny.inputs
    model, reference = read_graph(path), run(path, inputs)[0]
    did = []
    for graph_pass in standard_passes():
        nodes_before = len(model.graph)
        graph_pass(model)
        did.append((graph_pass.name, len(graph_pass.changes) > 0))
        assert nodes_before >= len(model.graph)
        assert_same_in_fp32(run(model, inputs)[0], reference, TERMS, graph_pass.name)
    assert did == [
        ("drop-dead", False),
        ("slim", True),
        ("fold-normalisation", True),
        ("fold-gates", True),
        ("compact-attention", True),
        ("fusible-rms-norm", False),
        ("drop-dead", True),
    ]
    assert not [item for item in model.graph if item.op_type == "Mul" and "preprocess" in block_of(item)]
    assert len(model.graph) < len(read_graph(path).graph) - 25


@pytest.mark.parametrize("changes", [LLAMA, pytest.param(GPT_NEOX, marks=pytest.mark.slow)])
def test_the_passes_on_other_decoders(
    changes: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _, path, _, inputs = traced_policy(tmp_path_factory, **changes)
    passes = standard_passes()
    (written,) = apply_passes(path, tmp_path / "passed.onnx", passes)
    assert_same_in_fp32(run(written, inputs)[0], run(path, inputs)[0], TERMS)
    changed = {graph_pass.name: len(graph_pass.changes) for graph_pass in passes}
    assert changed["fusible-rms-norm"] == (5 if changes is LLAMA else 0)


def test_later_steps_find_the_same_matmuls(tiny: TracedPolicy) -> None:
    """They go by the nodes' names and by the exporter's notes; only MatMuls of constants are gone."""

    def matmuls(model: ir.Model) -> set[tuple[str, str]]:
        return {(str(item.name), block_of(item)) for item in model.graph if is_weight_matmul(item)}

    model = read_graph(tiny.backbone)
    before = matmuls(model)
    for graph_pass in standard_passes():
        graph_pass(model)
    assert matmuls(model) < before
    (gone,) = before - matmuls(model)
    assert gone[1] == "resampler.layers.0"
    assert all(block != "unnamed" for _, block in before)
