"""Random small graphs: whatever the shapes, biases and orders of operands, a pass changes no number."""

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from rfedge.export.passes.compact_attention import CompactAttention
from rfedge.export.passes.fold_gates import FoldGates
from rfedge.export.passes.fold_normalisation import FoldNormalisation
from rfedge.export.passes.graph_pass import GraphPass
from rfedge.export.passes.slim import Slim
from tests.export.float_graphs import Array, draw, graph_of, op_types, run
from tests.tolerances import fp32_tolerance

node = helper.make_node
size = st.integers(1, 9)
MOST_TERMS = 4 * 36  # four steps before a convolution over 4 channels and 3 x 3 pixels
quick = settings(max_examples=25, deadline=None)


def same_numbers(graph_pass: GraphPass, model: ir.Model, inputs: dict[str, Array]) -> None:
    before = run(model, inputs)
    graph_pass(model)
    for expected, result in zip(before, run(model, inputs), strict=True):
        largest = max(1.0, float(np.abs(expected).max()))  # what is less is a difference of numbers about 1
        np.testing.assert_allclose(result, expected, rtol=0.0, atol=fp32_tolerance(MOST_TERMS) * largest)


@quick
@given(
    sizes=st.tuples(size, size, size),
    gate=st.floats(-8, 8, width=32),
    gate_first=st.booleans(),
    tanh=st.booleans(),
    bias=st.sampled_from([None, "first", "second"]),
    gate_rank=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_gates(
    sizes: tuple[int, int, int], gate: float, gate_first: bool, tanh: bool, bias: str | None, gate_rank: int, seed: int
) -> None:
    rows, inner, columns = sizes
    rng = np.random.default_rng(seed)
    nodes = [node("Tanh", ["gate"], ["factor"])] if tanh else []
    nodes.append(node("MatMul", ["x", "weight"], ["MatMul"]))
    scaled = "MatMul"
    if bias is not None:
        nodes.append(node("Add", ["MatMul", "offset"] if bias == "second" else ["offset", "MatMul"], ["biased"]))
        scaled = "biased"
    factor = "factor" if tanh else "gate"
    nodes.append(node("Mul", [factor, scaled] if gate_first else [scaled, factor], ["y"]))
    constants = {"weight": draw(rng, inner, columns), "gate": np.full((1,) * gate_rank, gate, np.float32)}
    if bias is not None:
        constants["offset"] = draw(rng, columns)
    model = graph_of(nodes, constants, {"x": (rows, inner)}, ["y"])
    same_numbers(FoldGates(), model, {"x": draw(rng, rows, inner)})
    assert not {"Mul", "Tanh"} & set(op_types(model))


@quick
@given(
    steps=st.lists(st.sampled_from(["Mul", "Add", "Div", "Sub", "constant - x"]), min_size=1, max_size=4),
    channels=st.integers(1, 4),
    cameras=st.integers(1, 3),
    kernel=st.integers(1, 3),
    per_channel=st.booleans(),
    seed=st.integers(0, 99),
)
def test_normalisations(steps: list[str], channels: int, cameras: int, kernel: int, per_channel: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    constants: dict[str, Array] = {"weight": draw(rng, 2, channels, kernel, kernel)}
    for index in range(len(steps)):
        shape = (channels, 1, 1) if per_channel else ()
        constants[f"c{index}"] = np.asarray(rng.uniform(0.5, 2.0, shape), np.float32)
    nodes = []
    for camera in range(cameras):
        value = f"image{camera}"
        for index, step in enumerate(steps):
            operands = [f"c{index}", value] if step == "constant - x" else [value, f"c{index}"]
            value = f"v{camera}_{index}"
            nodes.append(node("Sub" if step == "constant - x" else step, operands, [value]))
    last = [f"v{camera}_{len(steps) - 1}" for camera in range(cameras)]
    nodes.append(node("Concat", last, ["images"], axis=0))
    nodes.append(node("Conv", ["images", "weight"], ["y"], strides=[kernel, kernel]))
    shapes = {f"image{camera}": (1, channels, 6, 6) for camera in range(cameras)}
    model = graph_of(nodes, constants, shapes, ["y"])
    same_numbers(FoldNormalisation(), model, {name: draw(rng, *shape) for name, shape in shapes.items()})
    assert op_types(model) == ["Concat", "Conv"]


@quick
@given(
    batch=size, heads=size, rows=size, columns=size, scales=st.tuples(st.booleans(), st.booleans()), seed=st.integers(0, 99)
)
def test_attention(batch: int, heads: int, rows: int, columns: int, scales: tuple[bool, bool], seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = [
        node("Reshape", ["k", "three"], ["k_3"]),
        node("Transpose", ["k_3"], ["k_t"], perm=[0, 2, 1]),
        node("Reshape", ["k_t", "four"], ["k_4"]),
    ]
    q, k = "q", "k_4"
    if scales[0]:
        nodes.append(node("Mul", ["a", "q"], ["q_scaled"]))
        q = "q_scaled"
    if scales[1]:
        nodes.append(node("Mul", ["k_4", "b"], ["k_scaled"]))
        k = "k_scaled"
    nodes.append(node("MatMul", [q, k], ["y"]))
    constants = {
        "three": np.int64([-1, rows, columns]),
        "four": np.int64([batch, heads, columns, rows]),
        "a": np.float32([0.3]),
        "b": np.float32(0.7),
    }
    shapes = {"q": (batch, heads, 2, columns), "k": (batch, heads, rows, columns)}
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    model = graph_of(nodes, arrays, shapes, ["y"])
    same_numbers(CompactAttention(), model, {name: draw(rng, *shape) for name, shape in shapes.items()})
    assert op_types(model).count("Mul") <= 1
    assert "Transpose" in op_types(model)


@quick
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4), hops=st.integers(1, 4), seed=st.integers(0, 99))
def test_chains_of_reshapes(shape: list[int], hops: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    total = int(np.prod(shape))
    constants: dict[str, Array] = {"one": np.ones(1, np.float32)}
    nodes, value = [], "x"
    for hop in range(hops):
        target = [-1, total] if rng.integers(2) else list(rng.permutation(shape))
        constants[f"s{hop}"] = np.array(target, np.int64)
        nodes.append(node("Reshape", [value, f"s{hop}"], [f"r{hop}"]))
        value = f"r{hop}"
    nodes.append(node("Mul", [value, "one"], ["y"]))
    model = graph_of(nodes, constants, {"x": tuple(shape)}, ["y"])
    same_numbers(Slim(), model, {"x": draw(rng, *shape)})
    assert op_types(model).count("Reshape") <= 1
