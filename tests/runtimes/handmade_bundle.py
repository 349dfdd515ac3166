"""Tiny bundles built by hand: real ONNX graphs under the real contract, each with its oracle in numpy.

backbone: feature = tanh(mean pixel of both cameras @ W + masked mean of the text embedding)
head:     a stack of ONNX LSTM nodes, then one matrix for the pose (tanh) and one for the gripper (sigmoid)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from rfedge.bundle.artifact import Manifest, ParityRecord, PrecisionRecord, write_bundle
from rfedge.config import PolicyConfig, preset
from rfedge.contract import GraphContract, TensorSpec, policy_contract
from rfedge.language.tokenizer import InstructionTokenizer
from tests.tolerances import head_terms

Array = npt.NDArray[Any]
INSTRUCTIONS = ("open the drawer", "pull the handle to open the drawer", "push the button")
_TYPES = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT, "bool": TensorProto.BOOL}


@dataclass(frozen=True)
class Oracle:
    """The bundle's arithmetic in numpy, float64 inside."""

    config: PolicyConfig
    weights: dict[str, Array]
    embedding: Array

    @property
    def backbone_terms(self) -> int:
        """Additions behind one another to a feature, see `tests.tolerances`."""
        return 200 * 200 + 6 + self.config.decoder.text_length

    @property
    def terms(self) -> int:
        """Additions behind one another to an action."""
        return self.backbone_terms + head_terms(self.config)

    def backbone(self, image_static: Array, image_gripper: Array, text_embedding: Array, text_mask: Array) -> Array:
        pixels = np.concatenate([image_static.mean(axis=(1, 2)), image_gripper.mean(axis=(1, 2))], axis=1) / 255
        mask = text_mask[..., None].astype(np.float64)
        text = (text_embedding * mask).sum(axis=1) / mask.sum(axis=1)
        return np.tanh(pixels @ self.weights["pixels"] + text)

    def head(self, features: Array, h: Array, c: Array) -> tuple[Array, Array, Array, Array]:
        """Replay features (step, width) from h, c (layer, hidden); pose and gripper are those of the last step."""
        h, c = h.astype(np.float64).copy(), c.astype(np.float64).copy()
        for feature in features:
            value = feature.astype(np.float64)
            for layer in range(self.config.head.layers):
                w, r, b = (self.weights[f"{name}{layer}"] for name in "WRB")
                size = self.config.head.hidden_size
                i, o, f, g = np.split(w @ value + r @ h[layer] + b[: 4 * size] + b[4 * size :], 4)
                c[layer] = _sigmoid(f) * c[layer] + _sigmoid(i) * np.tanh(g)
                h[layer] = _sigmoid(o) * np.tanh(c[layer])
                value = h[layer]
        return np.tanh(value @ self.weights["pose"]), _sigmoid(value @ self.weights["grip"]), h, c


def _sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def tiny_config(**changes: Any) -> PolicyConfig:
    """`preset("tiny")` with some fields changed, checked again."""
    return PolicyConfig.model_validate(preset("tiny").model_dump() | changes)


def write_handmade_bundle(
    path: Path,
    config: PolicyConfig | None = None,
    *,
    seed: int = 0,
    requested: str = "fp32",
    blocks: dict[str, str] | None = None,
    poison: str = "",
    loops: int = 0,
) -> Oracle:
    """Write a bundle and return its oracle.

    Args:
        poison: "backbone" or "head" puts a NaN into that graph's weights.
        loops: how often a loop in the backbone does nothing to the feature.
    """
    config = config or tiny_config()
    rng = np.random.default_rng(seed)
    width, hidden, chunk = config.feature_size, config.head.hidden_size, config.chunk_size
    weights: dict[str, Array] = {"pixels": _normal(rng, 6, width)}
    for layer in range(config.head.layers):
        weights[f"W{layer}"] = _normal(rng, 4 * hidden, width if layer == 0 else hidden)
        weights[f"R{layer}"] = _normal(rng, 4 * hidden, hidden)
        weights[f"B{layer}"] = _normal(rng, 8 * hidden)
    weights["pose"], weights["grip"] = _normal(rng, hidden, chunk * 6) * 4, _normal(rng, hidden, chunk) * 4
    if poison:
        weights["pixels" if poison == "backbone" else "pose"][0, 0] = np.nan
    tokenizer = InstructionTokenizer.from_corpus(INSTRUCTIONS, vocab_size=400, text_length=config.decoder.text_length)
    embedding = _normal(rng, config.decoder.vocab_size, width)
    contract = policy_contract(config)
    with write_bundle(path) as writer:
        onnx.save(_backbone(contract.backbone, weights, loops), writer.add("backbone.onnx", "backbone"))
        onnx.save(_head(contract.head, weights, config), writer.add("head.onnx", "head"))
        save_file({"embedding": embedding}, writer.add("embedding.safetensors", "embedding"))
        tokenizer.save(writer.add("tokenizer.json", "tokenizer"))
        writer.finish(
            Manifest(
                policy=config,
                contract=contract,
                precision=PrecisionRecord(requested=requested, blocks=blocks or {"vision": "fp32", "head": "fp32"}),
                parity=ParityRecord(num_steps=0, inputs="none", metrics={}, thresholds={}, passed=True),
                source={"made": "by hand"},
                versions={"onnx": onnx.__version__},
            )
        )
    return Oracle(config=config, weights=weights, embedding=embedding)


def _normal(rng: np.random.Generator, *shape: int) -> Array:
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    shape = [f"{spec.name}_{axis}" if size == -1 else size for size, axis in zip(spec.shape, spec.axes, strict=True)]
    return helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], shape)


def _model(contract: GraphContract, nodes: list[onnx.NodeProto], constants: dict[str, Array]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "handmade",
        [_value_info(spec) for spec in contract.inputs],
        [_value_info(spec) for spec in contract.outputs],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _backbone(contract: GraphContract, weights: dict[str, Array], loops: int) -> onnx.ModelProto:
    node = helper.make_node
    nodes = []
    for camera in ("static", "gripper"):
        nodes += [
            node("Cast", [f"image_{camera}"], [f"{camera}_float"], to=TensorProto.FLOAT),
            node("ReduceMean", [f"{camera}_float", "pixel_axes"], [f"{camera}_mean"], keepdims=0),
        ]
    nodes += [
        node("Concat", ["static_mean", "gripper_mean"], ["means"], axis=1),
        node("Div", ["means", "byte"], ["pixels"]),
        node("MatMul", ["pixels", "weight"], ["seen"]),
        node("Cast", ["text_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "last_axis"], ["mask_column"]),
        node("Mul", ["text_embedding", "mask_column"], ["masked"]),
        node("ReduceSum", ["masked", "token_axis"], ["text_sum"], keepdims=0),
        node("ReduceSum", ["mask_column", "token_axis"], ["num_tokens"], keepdims=0),
        node("Div", ["text_sum", "num_tokens"], ["text"]),
        node("Add", ["seen", "text"], ["sum"]),
        node("Tanh", ["sum"], ["looped" if loops else "feature"]),
    ]
    if loops:
        nodes.append(node("Loop", ["trips", "", "looped"], ["feature"], body=_empty_loop(contract)))
    constants = {
        "pixel_axes": np.array([1, 2], dtype=np.int64),
        "last_axis": np.array([2], dtype=np.int64),
        "token_axis": np.array([1], dtype=np.int64),
        "byte": np.array(255, dtype=np.float32),
        "weight": weights["pixels"],
    } | ({"trips": np.array(loops, dtype=np.int64)} if loops else {})
    return _model(contract, nodes, constants)


def _empty_loop(contract: GraphContract) -> onnx.GraphProto:
    flag, number = (TensorProto.BOOL, []), (TensorProto.INT64, [])
    feature = (TensorProto.FLOAT, list(contract.outputs[0].shape))
    info = helper.make_tensor_value_info
    return helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in ("goes_on", "x")],
        "body",
        [info("trip", *number), info("goes_on", *flag), info("x", *feature)],
        [info("goes_on_out", *flag), info("x_out", *feature)],
    )


def _head(contract: GraphContract, weights: dict[str, Array], config: PolicyConfig) -> onnx.ModelProto:
    node = helper.make_node
    layers, hidden, chunk = config.head.layers, config.head.hidden_size, config.chunk_size
    nodes = [node("Expand", ["features", "rows"], ["x0"])]  # (1, 1, width) -> (step 1, row, width)
    nodes += [
        node("Split", [name], [f"{name}{layer}" for layer in range(layers)], axis=0, num_outputs=layers) for name in "hc"
    ]
    constants: dict[str, Array] = {
        "direction": np.array([1], dtype=np.int64),
        "pose_shape": np.array([config.lstm_rows, chunk, 6], dtype=np.int64),
        "rows": np.array([1, config.lstm_rows, 1], dtype=np.int64),
        "hidden_size": np.array([config.lstm_rows, hidden], dtype=np.int64),
        "pose_weight": weights["pose"],
        "grip_weight": weights["grip"],
    }
    for layer in range(layers):
        constants |= {f"{name}{layer}": weights[f"{name}{layer}"][None] for name in "WRB"}
        nodes += [
            node(
                "LSTM",
                [f"x{layer}", f"W{layer}", f"R{layer}", f"B{layer}", "", f"h{layer}", f"c{layer}"],
                [f"y{layer}", f"h_new{layer}", f"c_new{layer}"],
                hidden_size=hidden,
            ),
            node("Squeeze", [f"y{layer}", "direction"], [f"x{layer + 1}"]),
        ]
    nodes += [node("Concat", [f"{name}_new{layer}" for layer in range(layers)], [f"{name}_out"], axis=0) for name in "hc"]
    nodes += [
        node("Reshape", [f"h_new{layers - 1}", "hidden_size"], ["last"]),
        node("MatMul", ["last", "pose_weight"], ["pose_flat"]),
        node("Tanh", ["pose_flat"], ["pose_tanh"]),
        node("Reshape", ["pose_tanh", "pose_shape"], ["pose"]),
        node("MatMul", ["last", "grip_weight"], ["gripper_logit"]),
        node("Sigmoid", ["gripper_logit"], ["gripper"]),
    ]
    return _model(contract, nodes, constants)
